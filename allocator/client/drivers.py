"""Drives operations: carries out the steps that they yield, blocking or not, and decides nothing.

The steps that ask this host's kernel are short reads of `/proc` and a bind; both drivers answer them in place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar

from allocator.kernel.sockets import listeners, listening_ports, prove_port
from allocator.operations.steps import AwaitTurn, DescribeListener, Operation, ProvePort, ReadListeners, Step
from allocator.protocol.calls import ScriptCall
from allocator.protocol.decode import WRONG_SHAPES, unreadable

if TYPE_CHECKING:
    from collections.abc import Awaitable

T = TypeVar("T")


class BlockingCaller(Protocol):
    """Runs a script and waits for its reply."""

    def call(self, step: ScriptCall) -> object:
        """Return the script's reply."""
        ...

    def await_turn(self, step: AwaitTurn) -> bool:
        """Return whether the waiter was told to look."""
        ...


class AsyncCaller(Protocol):
    """Runs a script and awaits its reply."""

    def call(self, step: ScriptCall) -> Awaitable[object]:
        """Return the script's reply."""
        ...

    def await_turn(self, step: AwaitTurn) -> Awaitable[bool]:
        """Return whether the waiter was told to look."""
        ...


class Kernel:
    """This host's answers to the steps that are not for Redis; tests put another in its place."""

    def answer(self, step: Step) -> object:
        """Return what a step about this host asks for."""
        if isinstance(step, ReadListeners):
            return listening_ports(step.first, step.last)
        if isinstance(step, ProvePort):
            return prove_port(step.port)
        if isinstance(step, DescribeListener):
            return describe_listener(step.port)
        raise TypeError(f"{type(step).__name__} is not a step about this host")


class UnseenKernel(Kernel):
    """Answers for a host that is not this one: no stranger is known, nothing is proved, nobody is described."""

    def answer(self, step: Step) -> object:
        """Return the answer that keeps nobody from trying."""
        if isinstance(step, ReadListeners):
            return frozenset()
        if isinstance(step, ProvePort):
            return True
        if isinstance(step, DescribeListener):
            return None
        return super().answer(step)


def describe_listener(port: int) -> str | None:
    """Return who listens on a port of this host as `command (pid 4242, user name)`, or None when nobody is seen."""
    for listener in listeners(port, port):
        if listener.pid is not None:
            user = f", user {listener.user}" if listener.user else ""
            return f"{listener.command or 'a process'} (pid {listener.pid}{user})"
        return "a process of another user or namespace"
    return None


def drive(operation: Operation[T], store: BlockingCaller, kernel: Kernel) -> T:
    """Run an operation to its end and return its result; an error of a step is raised inside the operation."""
    try:
        step = next(operation)
        while True:
            try:
                if isinstance(step, ScriptCall):
                    answer = store.call(step)
                else:
                    answer = store.await_turn(step) if isinstance(step, AwaitTurn) else kernel.answer(step)
            except Exception as error:  # noqa: BLE001  # the operation decides: it may have something to undo
                step = operation.throw(error)
            else:
                step = _next_step(operation, step, answer)
    except StopIteration as end:
        result: T = end.value
        return result


async def drive_async(operation: Operation[T], store: AsyncCaller, kernel: Kernel) -> T:
    """Do the same as `drive` without blocking the event loop on Redis."""
    try:
        step = next(operation)
        while True:
            try:
                if isinstance(step, ScriptCall):
                    answer = await store.call(step)
                else:
                    answer = (await store.await_turn(step)) if isinstance(step, AwaitTurn) else kernel.answer(step)
            except Exception as error:  # noqa: BLE001  # as above
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
