"""`PortAllocator`: lease a port, hold it, give it back. Blocking; heartbeats run in one daemon thread."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Concatenate, ParamSpec, Self, TypeVar, Unpack

from allocator.client.base import AllocatorBase, LeaseOperations, naming_arguments, wrong_arguments
from allocator.client.runners import HeartbeatThread
from allocator.client.session import ClaimArguments, library_settings, session_of
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
from allocator.store.base import open_store
from allocator.store.blocking import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from allocator.client.heartbeats import HeldLease
    from allocator.kernel.answers import Answers
    from allocator.model.durations import Duration
    from allocator.operations.steps import LeaseRecorder

P = ParamSpec("P")
T = TypeVar("T")
_Operations = LeaseOperations[threading.Event]


def _blocking(
    method: Callable[Concatenate[_Operations, P], Operation[T]],
) -> Callable[Concatenate[PortAllocator, P], T]:
    """Return a method that drives an operation; its arguments and its docstring are those of the operation."""

    @wraps(method)
    def driving(self: PortAllocator, /, *arguments: P.args, **named: P.kwargs) -> T:
        try:
            operation = method(self.operations, *arguments, **named)
        except TypeError as mismatch:  # a generator function has only bound its arguments by now
            raise wrong_arguments(method.__name__, mismatch) from None
        return self.run(operation)

    return driving


def drive(operation: Operation[T], store: Store, answers: Answers, recorder: LeaseRecorder | None = None) -> T:
    """Run an operation to its end and return its result; an error of a step is raised inside the operation.

    Args:
        operation: The operation.
        store: Answers for Redis.
        answers: Answers for this host.
        recorder: Writes rows, or None where no operation asks for that.
    """
    try:
        step = next(operation)
        while True:
            try:
                if type(step) is ScriptCall:
                    answer = store.call(step)
                elif type(step) in HOST_STEPS:
                    answer = answers.answer(step)
                elif isinstance(step, AwaitTurn):
                    answer = store.await_turn(step)
                elif isinstance(step, AwaitEvent):
                    answer = store.wait_for_event(step.stream, step.after_id, step.seconds)
                elif isinstance(step, Pause):
                    answer = time.sleep(step.seconds)  # type: ignore[func-returns-value]  # None is the answer
                else:
                    answer = answer_about_a_row(needed(recorder), step)  # type: ignore[arg-type]  # what is left
            except BaseException as error:  # noqa: BLE001  # the operation decides: it may have something to undo
                step = operation.throw(error)
            else:
                step = operation.send(answer)
    except StopIteration as end:
        result: T = end.value
        return result


class PortAllocator(AllocatorBase[threading.Event, Store]):
    """Hands out port leases of one pool on one host.

    Every method that asks Redis may raise StoreUnavailableError, when it does not answer in time, and
    ConfigurationError, when it cannot be used as it is; where the pool's rules are needed also PoolMissingError, when
    nobody has defined that pool.

    Args:
        store: The connection to Redis; `from_url` makes one.
        session: Who this host is.
        recorder: Writes the rows of leases that are claimed with `record=True`, or None.
    """

    _store_class = Store
    _runner_class = HeartbeatThread
    _runner: HeartbeatThread | None

    claim = _blocking(LeaseOperations.claim)
    claim_ports = _blocking(LeaseOperations.claim_ports)
    claim_anywhere = _blocking(LeaseOperations.claim_anywhere)
    renew = _blocking(LeaseOperations.renew)
    release = _blocking(LeaseOperations.release)
    release_all = _blocking(LeaseOperations.release_all)
    decline = _blocking(LeaseOperations.decline)
    end_held = _blocking(LeaseOperations.end_held)
    leases = _blocking(LeaseOperations.leases)
    resolve = _blocking(LeaseOperations.resolve)
    endpoints = _blocking(LeaseOperations.endpoints)
    register = _blocking(LeaseOperations.register)
    hosts = _blocking(LeaseOperations.hosts)
    pool = _blocking(LeaseOperations.pool)
    apply_pool = _blocking(LeaseOperations.apply_pool)

    def run(self, operation: Operation[T], answers: Answers | None = None) -> T:
        """Drive one operation to its end; `answers` are to its steps that are not for Redis, if others than usual."""
        return drive(operation, self.store, answers or self.session.answers, self.recorder)

    @naming_arguments
    @contextmanager
    def hold(
        self,
        plugin: str,
        *,
        ready: bool = False,
        wait: Duration | None = None,
        record: bool = False,
        **arguments: Unpack[ClaimArguments],
    ) -> Iterator[HeldLease[threading.Event]]:
        """Claim a port, renew its lease by heartbeats, and release it at the end of the block; otherwise as `claim`.

        With `ready` the lease is in state ready at once, for a worker that listens already; otherwise
        `update(lease, state=LeaseState.READY)` makes it so, and from then on it is sent requests.
        """
        check_flag("ready", ready)
        held = self.start_heartbeats(self.claim(plugin, wait=wait, record=record, **arguments))
        try:
            if ready:
                self.update(held, state=LeaseState.READY)
            yield held
        finally:
            self.end_held(held)

    def for_host(self, host: str) -> Self:
        """Return an allocator that claims for another host, over the same connection.

        Of that host's kernel nothing is seen: whoever starts the worker there finds out, and declines.
        """
        return type(self)(self.store, self.run(self.operations.host_session(host)))

    def close(self) -> None:
        """Release the leases that are still held, stop the heartbeats, close the connection."""
        if self._runner is not None:
            self.end_held(*self._runner.held)
            self._runner.close()
        self.store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:  # whatever ended the block
        self.close()


def open_reader(url: str | None = None, *, pool: str | None = None, host: str | None = None) -> PortAllocator:
    """Return an allocator that only reads, for which no embedded server is started; see `PortAllocator.from_url`."""
    settings = library_settings(url, pool=pool, host=host)
    return PortAllocator(open_store(Store, settings, reads_only=True), session_of(settings))
