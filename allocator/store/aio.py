"""`AsyncStore`: the same as `Store` for asyncio, as far as an allocator needs it."""

from __future__ import annotations

from time import monotonic, perf_counter
from typing import TYPE_CHECKING, Any, TypeVar

from allocator.model.redis_urls import Topology
from allocator.protocol.wire import WRONG_SHAPES
from allocator.store.base import (
    EVENTS_AT_ONCE,
    POOL_KEYS,
    BaseStore,
    OnCall,
    decode_events,
    decode_pool,
    decode_time,
    info_refused,
    is_unknown_script,
    newest_command,
    read_command,
    read_events,
)
from allocator.store.direct import ConnectionOptions, ReplyError, first_error
from allocator.store.translate import FAULTS, misread

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from allocator.model.redis_urls import StoreAddress
    from allocator.operations.steps import AwaitTurn
    from allocator.protocol.wire import ScriptCall
    from allocator.store.base import Event
    from allocator.store.direct import CommandPart
    from allocator.store.direct_aio import AsyncConnectionPool
    from allocator.store.redis_py import AsyncRedisPyClient

T = TypeVar("T")


class AsyncStore(BaseStore):
    """A connection to Redis for one event loop at a time, made when it is first used."""

    on_call: OnCall | None = None

    async def call(self, step: ScriptCall) -> Any:  # noqa: ANN401  # a reply is whatever the script answers
        """Run a script and return its reply; see `Store.call`."""
        if self.on_call is None:
            began = monotonic()
            try:
                return await self._evaluate(step)
            except Exception as error:  # noqa: BLE001  # what it means is decided below, as in `Store`
                return await self._after(error, began, lambda: self._evaluate(step), None)
        started, answered = perf_counter(), False
        try:
            reply = await self._patiently(lambda: self._evaluate(step))
            answered = True
        finally:
            self.on_call(step.script, perf_counter() - started, answered=answered)
        return reply

    async def _evaluate(self, step: ScriptCall) -> Any:  # noqa: ANN401  # as above
        client = self._client or await self._connect()
        if step.replicas:
            return await self._evaluate_and_wait(client, step)
        try:
            return await client.execute(*step.command(in_cluster=client.is_cluster))
        except ReplyError as error:
            if not is_unknown_script(error):
                raise
        return await client.execute(*step.command(in_cluster=client.is_cluster, whole=True))

    async def _evaluate_and_wait(self, client: Any, step: ScriptCall) -> list[Any]:  # noqa: ANN401  # one of two clients
        """Run a script, and wait on the same connection until replicas have what it wrote."""
        found: list[Any] = []
        for whole in (False, True):
            commands = step.command(in_cluster=client.is_cluster, whole=whole), self._wait_command(step)
            found = await client.execute_together(step.keys[0], commands)
            if not is_unknown_script(found[0]):
                break
        if error := first_error(found):
            raise error
        return found

    async def _patiently(self, attempt: Callable[[], Awaitable[T]], key: str | None = None) -> T:
        """Make a call, and make it again while what went wrong may pass and there is time."""
        began = monotonic()
        try:
            return await attempt()
        except Exception as error:  # noqa: BLE001  # as above
            return await self._after(error, began, attempt, key)

    async def _after(self, error: Exception, began: float, attempt: Callable[[], Awaitable[T]], key: str | None) -> T:
        """Make a call again that failed, or raise what its error means."""
        try:
            left_s = self._seconds_to_try(error, monotonic() - began)
            if not left_s:
                raise error
            return await self._again(attempt, left_s)
        except FAULTS as fault:
            raise self._translated(fault, key) from fault
        except UnicodeEncodeError:  # an argument that is not text
            raise
        except WRONG_SHAPES as shape:
            raise misread(key) from shape

    @staticmethod
    async def _again(attempt: Callable[[], Awaitable[T]], seconds: float) -> T:
        from tenacity import AsyncRetrying

        from allocator.store.retries import transient_policy

        async def again() -> T:  # tenacity awaits only what it sees to be a coroutine function, which a lambda is not
            return await attempt()

        return await AsyncRetrying(**transient_policy(seconds))(again)

    async def _connect(self) -> AsyncConnectionPool | AsyncRedisPyClient:
        client = connect(self._address(), self._timeout_s)
        used: AsyncConnectionPool | AsyncRedisPyClient | None = None
        try:
            used = self._accept_client(client, await _info(client))
        finally:
            if used is not client:
                await client.close()
        return used

    async def _execute(self, *parts: CommandPart) -> Any:  # noqa: ANN401  # as above
        return await (self._client or await self._connect()).execute(*parts)

    async def wait_for_event(self, stream: str, after_id: str, timeout_s: float) -> str | None:
        """Wait until a stream has an event after `after_id`; see `Store.wait_for_event`."""
        deadline = monotonic() + timeout_s
        while (left := deadline - monotonic()) > 0:
            events = await self.read_events(stream, after_id, EVENTS_AT_ONCE, block_s=left)
            if events:
                return events[-1][0]
        return None

    async def read_events(self, stream: str, after_id: str, count: int, *, block_s: float | None = None) -> list[Event]:
        """Return up to `count` events after `after_id`, oldest first.

        Args:
            stream: The stream's key.
            after_id: The id of the last event that is known.
            count: How many at most.
            block_s: For how many seconds to wait for the first of them, at most half the time that Redis may be
                silent; None for not at all.
        """
        command = read_command(stream, after_id, count, None if block_s is None else self._blocking_s(block_s))

        async def read() -> list[Event]:
            return read_events(await self._execute(*command))

        return await self._patiently(read, stream)

    async def newest_events(self, stream: str, count: int, *, before_id: str = "+") -> list[Event]:
        """Return the last `count` events, or those up to `before_id` (`(` before it leaves it out), oldest first."""

        async def read() -> list[Event]:
            return decode_events(await self._execute(*newest_command(stream, count, before_id)))[::-1]

        return await self._patiently(read, stream)

    async def server_time(self) -> float:
        """Return the server's time in Unix seconds."""

        async def read() -> float:
            return decode_time(await self._execute("TIME"))

        return await self._patiently(read)

    async def count_members(self, key: str) -> int:
        """Return how many members a sorted set has; 0 when there is none."""

        async def read() -> int:
            return int(await self._execute("ZCARD", key))

        return await self._patiently(read, key)

    async def pool_names(self) -> list[str]:
        """Return the names of the pools that Redis has, in alphabetical order."""

        async def scan() -> list[str]:
            client = self._client or await self._connect()
            return sorted({pool async for name in client.key_names(POOL_KEYS) if (pool := decode_pool(name))})

        return await self._patiently(scan)

    async def await_turn(self, step: AwaitTurn) -> bool:
        """Report that a waiter is there, and wait until it is woken; return whether it was woken."""

        async def wait() -> bool:
            there, turn = self._await_turn_commands(step)
            await self._execute(*there)
            return await self._execute(*turn) is not None

        return await self._patiently(wait)

    async def close(self) -> None:
        """Close the connection."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()


def connect(address: StoreAddress, timeout_s: float) -> AsyncConnectionPool | AsyncRedisPyClient:
    """Return what answers commands at an address."""
    if address.topology in {Topology.SENTINEL, Topology.CLUSTER}:
        from allocator.store.redis_py import AsyncRedisPyClient

        return AsyncRedisPyClient(address, timeout_s)
    from allocator.store.direct_aio import AsyncConnectionPool

    return AsyncConnectionPool(ConnectionOptions(address, timeout_s))


async def _info(client: AsyncConnectionPool | AsyncRedisPyClient) -> Any:  # noqa: ANN401  # a reply
    try:
        return await client.execute("INFO")
    except ReplyError as error:
        return info_refused(error)
