"""`AsyncStore`: the same as `Store` for asyncio, as far as an allocator needs it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, TypeVar

from allocator.protocol.decode import WRONG_SHAPES
from allocator.protocol.scripts import script
from allocator.store.blocking import (
    Event,
    connection_options,
    decode_events,
    keys_for,
    sentinel_connection_options,
)
from allocator.store.opening import Opening
from allocator.store.retries import transient_policy
from allocator.store.servers import ServerInfo
from allocator.store.translate import client_errors, is_transient, misread, translate
from allocator.store.urls import Topology

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from allocator.operations.steps import AwaitTurn
    from allocator.protocol.calls import ScriptCall
    from allocator.store.urls import StoreAddress

T = TypeVar("T")


class AsyncStore(Opening):
    """A connection to Redis for one event loop, made when it is first used."""

    def __init__(self, connect: Callable[[], Any], *, shown_url: str, timeout_s: float = 5.0) -> None:
        super().__init__(connect, shown_url=shown_url, timeout_s=timeout_s)
        self._nodes: dict[str, Any] = {}

    @staticmethod
    def _client_for(address: StoreAddress, timeout_s: float) -> Any:  # noqa: ANN401  # one of three client classes
        return connect(address, timeout_s)

    async def call(self, step: ScriptCall) -> Any:  # noqa: ANN401  # a reply is whatever the script answers
        """Run a script and return its reply; see `Store.call`."""
        if self.on_call is None:
            return await self._patiently(lambda: self._evaluate(step))
        began, answered = time.perf_counter(), False
        try:
            reply = await self._patiently(lambda: self._evaluate(step))
            answered = True
        finally:
            self.on_call(step.script, time.perf_counter() - began, answered=answered)
        return reply

    async def _evaluate_and_wait(self, step: ScriptCall) -> list[Any]:
        """Run a script, and wait on the same connection until replicas have what it wrote."""
        from redis.exceptions import NoScriptError

        keys = keys_for(await self._ready_client(), step)
        client = await self._pipeline_client(step.keys[0])
        lua, wait_ms = script(step.script), int(self._timeout_s * 500)
        for words in (("EVALSHA", lua.sha1), ("EVAL", lua.source)):
            pipeline = client.pipeline(transaction=False)
            pipeline.execute_command(*words, len(keys), *keys, *step.args)
            pipeline.execute_command("WAIT", step.replicas, wait_ms)
            found: list[Any] = await pipeline.execute(raise_on_error=False)
            if not isinstance(found[0], NoScriptError):
                break
        for one in found:
            if isinstance(one, Exception):
                raise one
        return found

    async def _pipeline_client(self, key: str) -> Any:  # noqa: ANN401  # as above
        """Return the client whose pipelines go over one connection to the server that has `key`.

        A node of the async Cluster client has none of its own, and may send each command over another connection.
        """
        client = await self._ready_client()
        if not hasattr(client, "get_node_from_key"):
            return client
        await client.exists(key)  # follows the key where a failover or a moved slot took it; a pipeline would not
        node = client.get_node_from_key(key)
        if node.name not in self._nodes:
            from redis.asyncio import ConnectionPool, Redis

            pool = ConnectionPool(node.connection_class, **node.connection_kwargs)
            self._nodes[node.name] = Redis.from_pool(pool)
        return self._nodes[node.name]

    async def _evaluate(self, step: ScriptCall) -> Any:  # noqa: ANN401  # as above
        from redis.exceptions import NoScriptError

        if step.replicas:
            return await self._evaluate_and_wait(step)
        client = await self._ready_client()
        lua, keys = script(step.script), keys_for(client, step)
        try:
            return await client.execute_command("EVALSHA", lua.sha1, len(keys), *keys, *step.args)
        except NoScriptError:
            return await client.execute_command("EVAL", lua.source, len(keys), *keys, *step.args)

    async def _patiently(self, attempt: Callable[[], Awaitable[T]], key: str | None = None) -> T:
        try:
            return await self._tried(attempt)
        except client_errors() as error:
            raise translate(error, shown_url=self._shown_url, timeout_s=self._timeout_s, key=key) from error
        except UnicodeEncodeError:  # an argument that is no text
            raise
        except WRONG_SHAPES as error:
            raise misread(key) from error

    async def _tried(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Make a call, and make it again while what went wrong may pass and there is time."""
        began = time.monotonic()
        try:
            return await attempt()
        except client_errors() as error:
            left_s = self._timeout_s - (time.monotonic() - began)
            if not is_transient(error) or left_s <= 0:
                raise
        if self._reconnects:
            self._client = None
        from tenacity import AsyncRetrying

        async def again() -> T:  # tenacity awaits only what it sees to be a coroutine function, which a lambda is not
            return await attempt()

        return await AsyncRetrying(**transient_policy(left_s))(again)

    async def _ready_client(self) -> Any:  # noqa: ANN401  # one of three client classes
        if self._client is None:
            from redis.exceptions import NoPermissionError, ResponseError

            client = self._connect()
            try:
                info = await client.info()
            except (NoPermissionError, ResponseError) as error:
                if is_transient(error):
                    raise
                info = {}
            ServerInfo.read(info).check(self._shown_url)
            self._client = client
        return self._client

    async def wait_for_event(self, stream: str, after_id: str, timeout_s: float) -> str | None:
        """Wait until a stream has an event after `after_id`; see `Store.wait_for_event`."""
        import asyncio

        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while (left := deadline - loop.time()) > 0:
            block_ms = max(1, int(min(left, self._timeout_s / 2) * 1_000))

            async def read(wait_ms: int = block_ms) -> Any:  # noqa: ANN401  # the client's own shape
                client = await self._ready_client()
                return await client.xread({stream: after_id}, count=1_000, block=wait_ms)

            reply = await self._patiently(read, stream)
            if reply:
                return decode_events(reply[0][1])[-1][0]
        return None

    async def read_events(self, stream: str, after_id: str, count: int, *, block_s: float | None = None) -> list[Event]:
        """Return up to `count` events after `after_id`, oldest first.

        Args:
            stream: The stream's key.
            after_id: The id of the last event that is known.
            count: How many at most.
            block_s: For how many seconds to wait for the first of them; None for not at all. Less than the time that
                Redis may be silent.
        """
        block_ms = None if block_s is None else max(1, int(min(block_s, self._timeout_s / 2) * 1_000))

        async def read() -> list[Event]:
            client = await self._ready_client()
            reply = await client.xread({stream: after_id}, count=count, block=block_ms)
            return decode_events(reply[0][1]) if reply else []

        return await self._patiently(read, stream)

    async def newest_events(self, stream: str, count: int, *, before_id: str = "+") -> list[Event]:
        """Return the last `count` events, or those up to `before_id` (`(` before it leaves it out), oldest first."""

        async def read() -> list[Event]:
            client = await self._ready_client()
            return decode_events(await client.xrevrange(stream, max=before_id, count=count))[::-1]

        return await self._patiently(read, stream)

    async def server_time(self) -> float:
        """Return the server's time in Unix seconds."""

        async def read() -> float:
            seconds, microseconds = await (await self._ready_client()).time()
            return float(seconds) + float(microseconds) / 1_000_000

        return await self._patiently(read)

    async def count_members(self, key: str) -> int:
        """Return how many members a sorted set has; 0 when there is none."""

        async def read() -> int:
            return int(await (await self._ready_client()).zcard(key))

        return await self._patiently(read, key)

    async def pool_names(self) -> list[str]:
        """Return the names of the pools that Redis has, in alphabetical order."""
        from allocator.protocol.keys import PREFIX, pool_of_key

        async def scan() -> list[str]:
            client = await self._ready_client()
            keys = [key.decode() async for key in client.scan_iter(match=PREFIX + "{*}", count=1_000)]
            return sorted({name for key in keys if (name := pool_of_key(key))})

        return await self._patiently(scan)

    async def await_turn(self, step: AwaitTurn) -> bool:
        """Say that a waiter is there, and wait until it is told to look; return whether it was."""
        seconds = max(0.001, min(step.seconds, self._timeout_s / 2))

        async def wait() -> bool:
            client = await self._ready_client()
            await client.set(step.waiter, step.said, px=step.alive_ms)
            return await client.blpop([step.turn], timeout=seconds) is not None

        return await self._patiently(wait)

    async def close(self) -> None:
        """Close the connection."""
        for name in list(self._nodes):
            await self._nodes.pop(name).aclose()
        if self._client is not None:
            await self._client.aclose()
            self._client = None


def connect(url: StoreAddress, timeout_s: float) -> Any:  # noqa: ANN401  # one of three client classes
    """Return an async Redis client for `url` that retries nothing by itself and reads from primaries only."""
    from redis.asyncio import Redis
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    options = connection_options(url, timeout_s)
    once = Retry(NoBackoff(), 0)
    if url.topology is Topology.CLUSTER:
        from redis.asyncio.cluster import ClusterNode, RedisCluster

        return RedisCluster(startup_nodes=[ClusterNode(*node) for node in url.nodes], **options)
    if url.topology is Topology.SENTINEL:
        from redis.asyncio.sentinel import Sentinel

        sentinel_options = sentinel_connection_options(url, timeout_s)
        sentinel: Any = Sentinel(  # type: ignore[no-untyped-call]  # redis-py's
            list(url.nodes), sentinel_kwargs=sentinel_options, **options
        )
        return sentinel.master_for(url.service, db=url.database, retry=once)
    if url.path:
        return Redis(unix_socket_path=url.path, db=url.database, retry=once, **options)
    host, port = url.nodes[0]
    return Redis(host=host, port=port, db=url.database, retry=once, **options)
