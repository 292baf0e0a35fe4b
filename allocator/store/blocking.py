"""`Store`: scripts run in Redis, blocking. A call that is answered at once enters no retry policy."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

from allocator.model.errors import ConfigurationError
from allocator.protocol.decode import WRONG_SHAPES, text
from allocator.protocol.keys import whole_pool_keys
from allocator.protocol.scripts import script
from allocator.store.opening import Opening
from allocator.store.retries import transient_policy
from allocator.store.servers import ServerInfo
from allocator.store.translate import client_errors, is_transient, misread, translate
from allocator.store.urls import Topology

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from allocator.operations.steps import AwaitTurn
    from allocator.protocol.calls import ScriptCall
    from allocator.store.lines import Lines
    from allocator.store.urls import StoreAddress

T = TypeVar("T")
Event = tuple[str, dict[str, str]]


class Store(Opening):
    """A connection to Redis, made when it is first used; safe for threads."""

    _lines: Lines | None = None

    @staticmethod
    def _client_for(address: StoreAddress, timeout_s: float) -> Any:  # noqa: ANN401  # one of three client classes
        return connect(address, timeout_s)

    def call(self, step: ScriptCall) -> Any:  # noqa: ANN401  # a reply is whatever the script answers
        """Run a script and return its reply; sent again when the first answer did not come.

        Raises:
            StoreUnavailableError: When Redis did not answer in time.
            ConfigurationError: When it cannot be used as it is.
        """
        return self._patiently(lambda: self._evaluate(step))

    def _evaluate_and_wait(self, step: ScriptCall) -> list[Any]:
        """Run a script, and wait on the same connection until replicas have what it wrote."""
        from redis.exceptions import NoScriptError

        keys = keys_for(self._ready_client(), step)
        client = self._pipeline_client(step.keys[0])
        lua, wait_ms = script(step.script), int(self._timeout_s * 500)
        for words in (("EVALSHA", lua.sha1), ("EVAL", lua.source)):
            pipeline = client.pipeline(transaction=False)
            pipeline.execute_command(*words, len(keys), *keys, *step.args)
            pipeline.execute_command("WAIT", step.replicas, wait_ms)
            found: list[Any] = pipeline.execute(raise_on_error=False)
            if not isinstance(found[0], NoScriptError):
                break
        for one in found:
            if isinstance(one, Exception):
                raise one
        return found

    def _pipeline_client(self, key: str) -> Any:  # noqa: ANN401  # as above
        """Return the client whose pipelines go over one connection to the server that has `key`."""
        client = self._ready_client()
        if not hasattr(client, "get_node_from_key"):
            return client
        client.exists(key)  # follows the key where a failover or a moved slot took it; a pipeline would not
        return client.get_node_from_key(key).redis_connection

    def _evaluate(self, step: ScriptCall) -> Any:  # noqa: ANN401  # as above
        from redis.exceptions import NoScriptError

        if step.replicas:
            return self._evaluate_and_wait(step)
        client = self._ready_client()
        ask = self._lines.ask if self._lines else client.execute_command
        lua, keys = script(step.script), keys_for(client, step)
        try:
            return ask("EVALSHA", lua.sha1, len(keys), *keys, *step.args)
        except NoScriptError:
            return ask("EVAL", lua.source, len(keys), *keys, *step.args)

    def _patiently(self, attempt: Callable[[], T], key: str | None = None) -> T:
        try:
            return self._tried(attempt)
        except client_errors() as error:
            raise translate(error, shown_url=self._shown_url, timeout_s=self._timeout_s, key=key) from error
        except UnicodeEncodeError:  # an argument that is no text
            raise
        except WRONG_SHAPES as error:
            raise misread(key) from error

    def _tried(self, attempt: Callable[[], T]) -> T:
        """Make a call, and make it again while what went wrong may pass and there is time."""
        began = monotonic()
        try:
            return attempt()
        except client_errors() as error:
            left_s = self._timeout_s - (monotonic() - began)
            if not is_transient(error) or left_s <= 0:
                raise
        if self._reconnects:
            self._client = None
        from tenacity import Retrying

        return Retrying(**transient_policy(left_s))(attempt)

    def _ready_client(self) -> Any:  # noqa: ANN401  # one of three client classes
        if self._client is None:
            client = self._connect()
            server_info(client).check(self._shown_url)
            self._lines = lines_of(client)
            self._client = client
        return self._client

    def server(self) -> ServerInfo:
        """Return what the server says of itself."""

        def read() -> ServerInfo:
            return server_info(self._ready_client())

        return self._patiently(read)

    def server_time(self) -> float:
        """Return the server's time in Unix seconds."""

        def read() -> float:
            seconds, microseconds = self._ready_client().time()
            return float(seconds) + float(microseconds) / 1_000_000

        return self._patiently(read)

    def denied(self, commands: Sequence[tuple[str, ...]]) -> list[str]:
        """Return the names of those commands that this user may not give, in their order; the others are carried out.

        Args:
            commands: Commands with their arguments, which have to be without effect.
        """
        from redis.exceptions import NoPermissionError

        refused = []
        for words in commands:
            try:
                self._patiently(lambda words=words: self._ready_client().execute_command(*words))  # type: ignore[misc]  # bound now
            except ConfigurationError as error:
                if not isinstance(error.__cause__, NoPermissionError):
                    raise
                refused.append(words[0])
        return refused

    def wait_for_event(self, stream: str, after_id: str, timeout_s: float) -> str | None:
        """Wait until a stream has an event after `after_id`; return the newest id that was seen, or None.

        Args:
            stream: The stream's key.
            after_id: The id of the last event that is known.
            timeout_s: For how many seconds at most.
        """
        import time

        deadline = time.monotonic() + timeout_s
        while (left := deadline - time.monotonic()) > 0:
            block_ms = max(1, int(min(left, self._timeout_s / 2) * 1_000))
            events = self._patiently(lambda wait=block_ms: self._read(stream, after_id, 1_000, wait), stream)  # type: ignore[misc]  # bound now
            if events:
                return str(events[-1][0])
        return None

    def await_turn(self, step: AwaitTurn) -> bool:
        """Say that a waiter is there, and wait until it is told to look; return whether it was."""
        seconds = max(0.001, min(step.seconds, self._timeout_s / 2))

        def wait() -> bool:
            client = self._ready_client()
            client.set(step.waiter, step.said, px=step.alive_ms)
            return client.blpop([step.turn], timeout=seconds) is not None

        return self._patiently(wait)

    def read_events(self, stream: str, after_id: str, count: int) -> list[Event]:
        """Return up to `count` events after `after_id`, oldest first."""
        return self._patiently(lambda: self._read(stream, after_id, count, None), stream)

    def newest_events(self, stream: str, count: int) -> list[Event]:
        """Return the last `count` events, oldest first."""

        def read() -> list[Event]:
            return decode_events(self._ready_client().xrevrange(stream, count=count))[::-1]

        return self._patiently(read, stream)

    def _read(self, stream: str, after_id: str, count: int, block_ms: int | None) -> list[Event]:
        reply = self._ready_client().xread({stream: after_id}, count=count, block=block_ms)
        return decode_events(reply[0][1]) if reply else []

    def read_text(self, key: str) -> str | None:
        """Return what a string key holds, or None when there is none."""

        def read() -> str | None:
            found = self._ready_client().get(key)
            return None if found is None else str(found.decode("utf-8", "replace"))

        return self._patiently(read, key)

    def pool_names(self) -> list[str]:
        """Return the names of the pools that Redis has, in alphabetical order."""
        from allocator.protocol.keys import PREFIX, pool_of_key

        def scan() -> list[str]:
            client = self._ready_client()
            keys = (key.decode() for key in client.scan_iter(match=PREFIX + "{*}", count=1_000))
            return sorted({name for key in keys if (name := pool_of_key(key))})

        return self._patiently(scan)

    def close(self) -> None:
        """Close the connection."""
        if self._client is not None:
            self._client.close()
            self._client = None


def keys_for(client: Any, step: ScriptCall) -> tuple[str, ...]:  # noqa: ANN401  # one of several client classes
    """Return KEYS of a script for this client's kind of Redis."""
    return whole_pool_keys(step.keys) if hasattr(client, "get_node_from_key") else step.keys


def lines_of(client: Any) -> Lines | None:  # noqa: ANN401  # one of several client classes
    """Return the connections that scripts run over, or None where the client has to choose the server itself."""
    from redis import ConnectionPool, Redis

    from allocator.store.lines import Lines

    single = type(client) is Redis and type(client.connection_pool) is ConnectionPool
    return Lines(client) if single else None


def decode_events(rows: list[tuple[bytes, dict[bytes, bytes]]]) -> list[Event]:
    """Return stream entries as text."""
    return [
        (identifier.decode(), {text(name): text(value) for name, value in fields.items()})
        for identifier, fields in rows
        if fields
    ]


def server_info(client: Any) -> ServerInfo:  # noqa: ANN401  # one of three client classes
    """Return what `INFO` says; nothing where this user may not ask, or a fake server does not know."""
    from redis.exceptions import NoPermissionError, ResponseError

    try:
        info = client.info()
    except (NoPermissionError, ResponseError) as error:
        if is_transient(error):
            raise
        return ServerInfo.read({})
    return ServerInfo.read(info)


def connection_options(address: StoreAddress, timeout_s: float) -> dict[str, Any]:
    """Return the arguments that every connection gets."""
    options = _common_options(address, timeout_s)
    if address.username:
        options["username"] = address.username
    if address.password:
        options["password"] = address.password
    return options


def sentinel_connection_options(address: StoreAddress, timeout_s: float) -> dict[str, Any]:
    """Return the arguments of connections to the Sentinels: a quarter of the time each, so that one may be dead."""
    options = _common_options(address, timeout_s / 4)
    if address.sentinel_username:
        options["username"] = address.sentinel_username
    if address.sentinel_password:
        options["password"] = address.sentinel_password
    return options


def _common_options(address: StoreAddress, timeout_s: float) -> dict[str, Any]:
    options: dict[str, Any] = {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        "protocol": 2,
        "client_name": address.client_name or "portlease",
        # No CLIENT SETINFO: two more ways to the server for each connection, and for a user with least rights an entry
        # of ACL LOG each, for the right cannot be given in a file that Redis 7.0 reads as well.
        "driver_info": None,
    }
    if address.tls:
        options |= {"ssl": True, **address.ssl_options}
    return options


def connect(url: StoreAddress, timeout_s: float) -> Any:  # noqa: ANN401  # one of three client classes
    """Return a Redis client for `url` that retries nothing by itself and reads from primaries only."""
    from redis import Redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    options = connection_options(url, timeout_s)
    once = Retry(NoBackoff(), 0)
    if url.topology is Topology.CLUSTER:
        from redis.cluster import ClusterNode, RedisCluster

        nodes: list[Any] = [ClusterNode(*node) for node in url.nodes]  # type: ignore[no-untyped-call]  # redis-py's
        return RedisCluster(startup_nodes=nodes, **options)
    if url.topology is Topology.SENTINEL:
        from redis.sentinel import Sentinel

        sentinel_options = sentinel_connection_options(url, timeout_s)
        sentinel: Any = Sentinel(  # type: ignore[no-untyped-call]  # redis-py's
            list(url.nodes), sentinel_kwargs=sentinel_options, **options
        )
        return sentinel.master_for(url.service, db=url.database, retry=once)
    if url.path:
        return Redis(unix_socket_path=url.path, db=url.database, retry=once, **options)
    host, port = url.nodes[0]
    return Redis(host=host, port=port, db=url.database, retry=once, **options)
