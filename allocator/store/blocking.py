"""`Store`: scripts run in Redis, blocking. A call that is answered at once enters no retry policy."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

from allocator.model.errors import ConfigurationError
from allocator.model.redis_urls import Topology
from allocator.protocol.wire import WRONG_SHAPES, text
from allocator.store.base import (
    ALL_KEYS,
    EVENTS_AT_ONCE,
    POOL_KEYS,
    BaseStore,
    ServerInfo,
    decode_events,
    decode_pool,
    decode_time,
    info_refused,
    is_unknown_script,
    newest_command,
    read_command,
    read_events,
)
from allocator.store.direct import ConnectionOptions, ConnectionPool, ReplyError, first_error
from allocator.store.translate import FAULTS, misread

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from allocator.model.redis_urls import StoreAddress
    from allocator.operations.steps import AwaitTurn
    from allocator.protocol.wire import ScriptCall
    from allocator.store.base import Event
    from allocator.store.direct import CommandPart
    from allocator.store.redis_py import RedisPyClient

T = TypeVar("T")

_OF_A_COMMAND = ("ERR", "NOSCRIPT", "WRONGTYPE")
"""How a server begins to refuse a command for something else than the connection, its user or the server's state."""


class Store(BaseStore):
    """A connection to Redis, made when it is first used; safe for threads."""

    def call(self, step: ScriptCall) -> Any:  # noqa: ANN401  # a reply is whatever the script answers
        """Run a script and return its reply; sent again when the first answer did not come.

        Raises:
            StoreUnavailableError: When Redis did not answer in time.
            ConfigurationError: When it cannot be used as it is.
        """
        began = monotonic()
        try:
            return self._evaluate(step)
        except Exception as error:  # noqa: BLE001  # what it means is decided below, off the way of a call that is answered
            return self._after(error, began, lambda: self._evaluate(step), None)

    def _evaluate(self, step: ScriptCall) -> Any:  # noqa: ANN401  # as above
        client = self._client or self._connect()
        if step.replicas:
            return self._evaluate_and_wait(client, step)
        try:
            return client.execute(*step.command(in_cluster=client.is_cluster))
        except ReplyError as error:
            if not is_unknown_script(error):
                raise
        return client.execute(*step.command(in_cluster=client.is_cluster, whole=True))

    def _evaluate_and_wait(self, client: Any, step: ScriptCall) -> list[Any]:  # noqa: ANN401  # one of two clients
        """Run a script, and wait on the same connection until replicas have what it wrote."""
        found: list[Any] = []
        for whole in (False, True):
            commands = step.command(in_cluster=client.is_cluster, whole=whole), self._wait_command(step)
            found = client.execute_together(step.keys[0], commands)
            if not is_unknown_script(found[0]):
                break
        if error := first_error(found):
            raise error
        return found

    def _patiently(self, attempt: Callable[[], T], key: str | None = None) -> T:
        """Make a call, and make it again while what went wrong may pass and there is time."""
        began = monotonic()
        try:
            return attempt()
        except Exception as error:  # noqa: BLE001  # as above
            return self._after(error, began, attempt, key)

    def _after(self, error: Exception, began: float, attempt: Callable[[], T], key: str | None) -> T:
        """Make a call again that failed, or raise what its error means."""
        try:
            left_s = self._seconds_to_try(error, monotonic() - began)
            if not left_s:
                raise error
            return self._again(attempt, left_s)
        except FAULTS as fault:
            raise self._translated(fault, key) from fault
        except UnicodeEncodeError:  # an argument that is not text
            raise
        except WRONG_SHAPES as shape:
            raise misread(key) from shape

    @staticmethod
    def _again(attempt: Callable[[], T], seconds: float) -> T:
        from tenacity import Retrying

        from allocator.store.retries import transient_policy

        return Retrying(**transient_policy(seconds))(attempt)

    def _connect(self) -> ConnectionPool | RedisPyClient:
        client = connect(self._address(), self._timeout_s)
        used: ConnectionPool | RedisPyClient | None = None
        try:
            used = self._accept_client(client, _info(client))
        finally:
            if used is not client:
                client.close()
        return used

    def _execute(self, *parts: CommandPart) -> Any:  # noqa: ANN401  # as above
        return (self._client or self._connect()).execute(*parts)

    def server(self) -> ServerInfo:
        """Return what the server reports of itself."""
        return self._patiently(lambda: ServerInfo.read(_info(self._client or self._connect())))

    def server_time(self) -> float:
        """Return the server's time in Unix seconds."""
        return self._patiently(lambda: decode_time(self._execute("TIME")))

    def denied(self, commands: Sequence[tuple[str, ...]]) -> list[str]:
        """Return the names of those commands that this user may not give, in their order; the others are carried out.

        What a command is refused for after its rights were looked at does not matter here.

        Args:
            commands: Commands with their arguments, which have to be without effect.
        """
        refused = []
        for parts in commands:
            try:
                self._patiently(lambda parts=parts: self._execute(*parts))  # type: ignore[misc]  # bound now
            except ConfigurationError as error:
                code = error.__cause__.code if isinstance(error.__cause__, ReplyError) else ""
                if code == "NOPERM":
                    refused.append(parts[0])
                elif code not in _OF_A_COMMAND:
                    raise
        return refused

    def wait_for_event(self, stream: str, after_id: str, timeout_s: float) -> str | None:
        """Wait until a stream has an event after `after_id`; return the newest id that was seen, or None.

        Args:
            stream: The stream's key.
            after_id: The id of the last event that is known.
            timeout_s: For how many seconds at most.
        """
        deadline = monotonic() + timeout_s
        while (left := deadline - monotonic()) > 0:
            events = self._read(stream, after_id, EVENTS_AT_ONCE, self._blocking_s(left))
            if events:
                return events[-1][0]
        return None

    def await_turn(self, step: AwaitTurn) -> bool:
        """Report that a waiter is there, and wait until it is woken; return whether it was woken."""

        def wait() -> bool:
            there, turn = self._await_turn_commands(step)
            self._execute(*there)
            return self._execute(*turn) is not None

        return self._patiently(wait)

    def read_events(self, stream: str, after_id: str, count: int) -> list[Event]:
        """Return up to `count` events after `after_id`, oldest first."""
        return self._read(stream, after_id, count, None)

    def _read(self, stream: str, after_id: str, count: int, block_s: float | None) -> list[Event]:
        command = read_command(stream, after_id, count, block_s)
        return self._patiently(lambda: read_events(self._execute(*command)), stream)

    def newest_events(self, stream: str, count: int, *, before_id: str = "+") -> list[Event]:
        """Return the last `count` events, or those up to `before_id` (`(` before it leaves it out), oldest first."""
        command = newest_command(stream, count, before_id)
        return self._patiently(lambda: decode_events(self._execute(*command))[::-1], stream)

    def read_text(self, key: str) -> str | None:
        """Return what a string key holds, or None when there is none."""
        found = self._patiently(lambda: self._execute("GET", key), key)
        return None if found is None else text(found)

    def pool_names(self) -> list[str]:
        """Return the names of the pools that Redis has, in alphabetical order."""

        def scan() -> list[str]:
            names = (self._client or self._connect()).key_names(POOL_KEYS)
            return sorted({pool for name in names if (pool := decode_pool(name))})

        return self._patiently(scan)

    def key_names(self) -> list[str]:
        """Return the names of all keys under our prefix, whoever wrote them, in alphabetical order."""

        def scan() -> list[str]:
            names = (self._client or self._connect()).key_names(ALL_KEYS)
            return sorted({name.decode("utf-8", "replace") for name in names})

        return self._patiently(scan)

    def close(self) -> None:
        """Close the connection."""
        client, self._client = self._client, None
        if client is not None:
            client.close()


def connect(address: StoreAddress, timeout_s: float) -> ConnectionPool | RedisPyClient:
    """Return what answers commands at an address."""
    if address.topology in {Topology.SENTINEL, Topology.CLUSTER}:
        from allocator.store.redis_py import RedisPyClient

        return RedisPyClient(address, timeout_s)
    return ConnectionPool(ConnectionOptions(address, timeout_s))


def _info(client: ConnectionPool | RedisPyClient) -> Any:  # noqa: ANN401  # a reply
    try:
        return client.execute("INFO")
    except ReplyError as error:
        return info_refused(error)
