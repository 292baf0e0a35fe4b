"""`AsyncPortAllocator`: the same as `PortAllocator` for asyncio; heartbeats run in one task of the event loop."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Self, TypeVar, Unpack

from allocator.client.base import AllocatorBase, LeaseOperations, naming_arguments, wrong_arguments
from allocator.client.runners_aio import HeartbeatTask
from allocator.client.session import ClaimArguments  # noqa: TC001  # read from the declaration at run time
from allocator.model.names import check_flag
from allocator.model.states import LeaseState
from allocator.operations.steps import (
    HOST_STEPS,
    AwaitEvent,
    AwaitTurn,
    Operation,
    Pause,
    answer_about_a_row,
    needed,
)
from allocator.protocol.wire import ScriptCall
from allocator.store.aio import AsyncStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

    from allocator.client.heartbeats import HeldLease
    from allocator.kernel.answers import Answers
    from allocator.model.durations import Duration
    from allocator.operations.steps import LeaseRecorder

P = ParamSpec("P")
T = TypeVar("T")
_Operations = LeaseOperations[asyncio.Event]


def _awaited(
    method: Callable[Concatenate[_Operations, P], Operation[T]],
) -> Callable[Concatenate[AsyncPortAllocator, P], Coroutine[Any, Any, T]]:
    """Return a method that drives an operation; its arguments and its docstring are those of the operation."""

    @wraps(method)
    async def driving(self: AsyncPortAllocator, /, *arguments: P.args, **named: P.kwargs) -> T:
        try:
            operation = method(self.operations, *arguments, **named)
        except TypeError as mismatch:  # a generator function has only bound its arguments by now
            raise wrong_arguments(method.__name__, mismatch) from None
        return await self.run(operation)

    return driving


async def drive_async(
    operation: Operation[T], store: AsyncStore, answers: Answers, recorder: LeaseRecorder | None = None
) -> T:
    """Do the same as `drive` without blocking the event loop on Redis, on a pause or on a database."""
    try:
        step = next(operation)
        while True:
            try:
                if type(step) is ScriptCall:
                    answer = await store.call(step)
                elif type(step) in HOST_STEPS:
                    answer = answers.answer(step)
                elif isinstance(step, AwaitTurn):
                    answer = await store.await_turn(step)
                elif isinstance(step, AwaitEvent):
                    answer = await store.wait_for_event(step.stream, step.after_id, step.seconds)
                elif isinstance(step, Pause):
                    answer = await asyncio.sleep(step.seconds)  # type: ignore[func-returns-value]  # as above
                else:
                    answer = await asyncio.to_thread(answer_about_a_row, needed(recorder), step)  # type: ignore[arg-type]  # as above
            except BaseException as error:  # noqa: BLE001  # as above
                step = operation.throw(error)
            else:
                step = operation.send(answer)
    except StopIteration as end:
        result: T = end.value
        return result


class AsyncPortAllocator(AllocatorBase[asyncio.Event, AsyncStore]):
    """Hands out port leases of one pool on one host, for asyncio; methods and errors are those of `PortAllocator`.

    Args:
        store: The connection to Redis; `from_url` makes one.
        session: Who this host is.
        recorder: Writes the rows of leases that are claimed with `record=True`, or None.
    """

    _store_class = AsyncStore
    _runner_class = HeartbeatTask
    _runner: HeartbeatTask | None

    claim = _awaited(LeaseOperations.claim)
    claim_ports = _awaited(LeaseOperations.claim_ports)
    claim_anywhere = _awaited(LeaseOperations.claim_anywhere)
    renew = _awaited(LeaseOperations.renew)
    release = _awaited(LeaseOperations.release)
    release_all = _awaited(LeaseOperations.release_all)
    decline = _awaited(LeaseOperations.decline)
    end_held = _awaited(LeaseOperations.end_held)
    leases = _awaited(LeaseOperations.leases)
    resolve = _awaited(LeaseOperations.resolve)
    endpoints = _awaited(LeaseOperations.endpoints)
    register = _awaited(LeaseOperations.register)
    hosts = _awaited(LeaseOperations.hosts)
    pool = _awaited(LeaseOperations.pool)
    apply_pool = _awaited(LeaseOperations.apply_pool)

    async def run(self, operation: Operation[T], answers: Answers | None = None) -> T:
        """Drive one operation to its end; `answers` are to its steps that are not for Redis, if others than usual."""
        return await drive_async(operation, self.store, answers or self.session.answers, self.recorder)

    @naming_arguments
    @asynccontextmanager
    async def hold(
        self,
        plugin: str,
        *,
        ready: bool = False,
        wait: Duration | None = None,
        record: bool = False,
        **arguments: Unpack[ClaimArguments],
    ) -> AsyncIterator[HeldLease[asyncio.Event]]:
        """Claim a port, renew its lease by heartbeats, and release it at the end of the block; otherwise as `claim`.

        With `ready` the lease is in state ready at once, for a worker that listens already; otherwise
        `update(lease, state=LeaseState.READY)` makes it so, and from then on it is sent requests.
        """
        check_flag("ready", ready)
        held = self.start_heartbeats(await self.claim(plugin, wait=wait, record=record, **arguments))
        try:
            if ready:
                self.update(held, state=LeaseState.READY)
            yield held
        finally:
            await self.end_held(held)

    async def for_host(self, host: str) -> Self:
        """Return an allocator that claims for another host, over the same connection; see `PortAllocator.for_host`."""
        return type(self)(self.store, await self.run(self.operations.host_session(host)))

    async def close(self) -> None:
        """Release the leases that are still held, stop the heartbeats, close the connection."""
        if self._runner is not None:
            await self.end_held(*self._runner.held)
            await self._runner.close()
        await self.store.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:  # whatever ended the block
        await self.close()
