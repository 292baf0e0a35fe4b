"""Drives operations: carries out the steps that they yield, blocking or not, and decides nothing.

The steps that ask this host's kernel are short reads of `/proc` and a bind; both drivers answer them in place.
"""

from __future__ import annotations

import time
from time import monotonic
from typing import TYPE_CHECKING, Protocol, TypeVar

from allocator.kernel.sockets import listeners, listening_ports, prove_port
from allocator.model.errors import ConfigurationError
from allocator.operations.steps import (
    AwaitEvent,
    AwaitTurn,
    CheckRow,
    DescribeListener,
    JudgeHolder,
    KeepLeases,
    KeepTokens,
    Operation,
    Pause,
    ProvePorts,
    ReadListeners,
    Step,
    Warn,
    WriteRow,
)
from allocator.protocol.wire import WRONG_SHAPES, ScriptCall, unreadable

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from allocator.model.leases import Lease
    from allocator.model.names import WorkerId
    from allocator.operations.steps import Judgement, Standing

T = TypeVar("T")


class BlockingCaller(Protocol):
    """Runs a script and waits for its reply."""

    def call(self, step: ScriptCall) -> object:
        """Return the script's reply."""
        ...

    def await_turn(self, step: AwaitTurn) -> bool:
        """Return whether the waiter was told to look."""
        ...

    def wait_for_event(self, stream: str, after_id: str, timeout_s: float) -> str | None:
        """Return the newest id that was seen after `after_id`, or None."""
        ...


class AsyncCaller(Protocol):
    """Runs a script and awaits its reply."""

    def call(self, step: ScriptCall) -> Awaitable[object]:
        """Return the script's reply."""
        ...

    def await_turn(self, step: AwaitTurn) -> Awaitable[bool]:
        """Return whether the waiter was told to look."""
        ...

    def wait_for_event(self, stream: str, after_id: str, timeout_s: float) -> Awaitable[str | None]:
        """Return the newest id that was seen after `after_id`, or None."""
        ...


class LeaseRecorder(Protocol):
    """Writes the rows of leases; called from any thread. `allocator.DatabaseRecorder` is one."""

    def check(self, pool: str, worker: WorkerId) -> None:
        """Make sure that a worker can have a row, before it is given a lease; raises when it cannot."""
        ...

    def record(self, lease: Lease, *, over: Standing | None = None) -> Standing | None:
        """Write the row of a lease, or return the live row of another worker that has its place.

        Args:
            lease: The lease, as it was just granted.
            over: A row in the way that was returned before, and whose lease is known to have ended.
        """
        ...


def needed(recorder: LeaseRecorder | None) -> LeaseRecorder:
    """Return the recorder.

    Raises:
        ConfigurationError: When there is none.
    """
    if recorder is None:
        raise ConfigurationError(
            "record=True needs a database to write to; give the allocator recorder=DatabaseRecorder.open(URL)"
        )
    return recorder


QUIET_S = 1.0
"""How long a listing that showed nobody is good enough: who listens since then is found by the bind of the proof."""


def answer_about_a_row(recorder: LeaseRecorder, step: CheckRow | WriteRow) -> Standing | None:
    """Return what a step about the database asks for."""
    if isinstance(step, WriteRow):
        return recorder.record(step.lease, over=step.over)
    recorder.check(step.pool, step.worker)
    return None


class Answers:
    """Answers to the steps that are not for Redis: for this host, and for a caller who keeps tokens in memory only.

    Whoever drives a claim in another way overrides a method; tests put others in their place.

    A listing is for choosing well; the proof decides. So a range in which nobody listened is not read again for a
    second, unless a bind was refused meanwhile or the step asks for it. A listing that showed somebody is read each
    time: a port must not be avoided because of a listener that is gone.
    """

    _quiet: tuple[int, int, float] = (0, 0, 0.0)
    """The range in which nobody listened, and until when that is good enough, in seconds of the monotonic clock."""

    def read_listeners(self, step: ReadListeners) -> frozenset[int]:
        """Return the ports that programs listen on."""
        now, (first, last, until) = monotonic(), self._quiet
        if now < until and first <= step.first and step.last <= last and not step.fresh:
            return frozenset()
        found = listening_ports(step.first, step.last)
        self._quiet = Answers._quiet if found else (step.first, step.last, now + QUIET_S)
        return found

    def prove_ports(self, step: ProvePorts) -> frozenset[int]:
        """Return the ports that the kernel refuses."""
        refused = frozenset(port for port in step.ports if not prove_port(port))
        if refused:
            self._quiet = Answers._quiet
        return refused

    def describe_listener(self, step: DescribeListener) -> str | None:
        """Return who listens on a port."""
        who = describe_listener(step.port)
        if who and step.lease:
            from allocator.kernel.holders import started_as

            who += f", which an earlier start of {step.lease.worker} left behind" if started_as(step.lease) else ""
        return who

    def judge_holder(self, step: JudgeHolder) -> Judgement:
        """Return what is known of the processes of a lease that is in the way."""
        from allocator.kernel.holders import judge

        return judge(step.holder, step.host)

    def keep_tokens(self, step: KeepTokens) -> tuple[str, ...]:
        """Return the tokens to claim with."""
        return step.tokens

    def keep_leases(self, step: KeepLeases) -> bool:
        """Return whether a claim was the caller's to end."""
        del step
        return True

    def warn(self, step: Warn) -> None:
        """Show a sentence; a program that calls a library has nobody who would read it."""

    def answer(self, step: Step) -> object:
        """Return what a step asks for."""
        method = _METHODS.get(type(step))
        if method is None:
            raise TypeError(f"{type(step).__name__} is not a step about this host")
        return getattr(self, method)(step)


_METHODS: dict[type, str] = {
    ReadListeners: "read_listeners",
    ProvePorts: "prove_ports",
    DescribeListener: "describe_listener",
    JudgeHolder: "judge_holder",
    KeepTokens: "keep_tokens",
    KeepLeases: "keep_leases",
    Warn: "warn",
}


class UnseenAnswers(Answers):
    """Answers for a host that is not this one: no stranger is known, nothing is proved, nobody is described."""

    def read_listeners(self, step: ReadListeners) -> frozenset[int]:
        """Return that nobody is known to listen."""
        del step
        return frozenset()

    def prove_ports(self, step: ProvePorts) -> frozenset[int]:
        """Return that no port was refused."""
        del step
        return frozenset()

    def describe_listener(self, step: DescribeListener) -> None:
        """Return that nobody is seen."""
        del step


def describe_listener(port: int) -> str | None:
    """Return who listens on a port of this host as `command (pid 4242, user name)`, or None when nobody is seen."""
    for listener in listeners(port, port):
        if listener.pid is not None:
            user = f", user {listener.user}" if listener.user else ""
            return f"{listener.command or 'a process'} (pid {listener.pid}{user})"
        return "a process of another user or namespace"
    return None


def drive(operation: Operation[T], store: BlockingCaller, answers: Answers, recorder: LeaseRecorder | None = None) -> T:
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
                if isinstance(step, ScriptCall):
                    answer = store.call(step)
                elif isinstance(step, AwaitTurn):
                    answer = store.await_turn(step)
                elif isinstance(step, AwaitEvent):
                    answer = store.wait_for_event(step.stream, step.after_id, step.seconds)
                elif isinstance(step, Pause):
                    answer = time.sleep(step.seconds)  # type: ignore[func-returns-value]  # None is the answer
                elif isinstance(step, CheckRow | WriteRow):
                    answer = answer_about_a_row(needed(recorder), step)
                else:
                    answer = answers.answer(step)
            except BaseException as error:  # noqa: BLE001  # the operation decides: it may have something to undo
                step = operation.throw(error)
            else:
                step = _next_step(operation, step, answer)
    except StopIteration as end:
        result: T = end.value
        return result


async def drive_async(
    operation: Operation[T], store: AsyncCaller, answers: Answers, recorder: LeaseRecorder | None = None
) -> T:
    """Do the same as `drive` without blocking the event loop on Redis, on a pause or on a database."""
    import asyncio

    try:
        step = next(operation)
        while True:
            try:
                if isinstance(step, ScriptCall):
                    answer = await store.call(step)
                elif isinstance(step, AwaitTurn):
                    answer = await store.await_turn(step)
                elif isinstance(step, AwaitEvent):
                    answer = await store.wait_for_event(step.stream, step.after_id, step.seconds)
                elif isinstance(step, Pause):
                    answer = await asyncio.sleep(step.seconds)  # type: ignore[func-returns-value]  # as above
                elif isinstance(step, CheckRow | WriteRow):
                    answer = await asyncio.to_thread(answer_about_a_row, needed(recorder), step)
                else:
                    answer = answers.answer(step)
            except BaseException as error:  # noqa: BLE001  # as above
                step = operation.throw(error)
            else:
                step = _next_step(operation, step, answer)
    except StopIteration as end:
        result: T = end.value
        return result


def _next_step(operation: Operation[T], step: Step, answer: object) -> Step:
    try:
        return operation.send(answer)
    except WRONG_SHAPES as error:
        if isinstance(step, ScriptCall):
            raise unreadable(f"the script {step.script}") from error
        raise
