"""What this host answers to the steps of an operation: who listens, what binds, who lives. Short reads and a bind.

Whoever drives a claim in another way overrides a method; tests put others in their place.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

from allocator.kernel.sockets import listeners, listening_ports, prove_port
from allocator.operations.steps import (
    DescribeListener,
    JudgeHolder,
    KeepLeases,
    KeepTokens,
    ProvePorts,
    ReadClosing,
    ReadListeners,
    Step,
    Warn,
)

if TYPE_CHECKING:
    from allocator.operations.steps import Judgement

QUIET_S = 1.0
"""How long a listing that showed nobody is good enough: who listens since then is found by the bind of the proof."""


class Answers:
    """Answers to the steps that are not for Redis: for this host, and for a caller who keeps tokens in memory only.

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

    def read_closing(self, step: ReadClosing) -> frozenset[int]:
        """Return the ports that only connections without a process have."""
        from allocator.kernel.socket_tables import closing_ports

        return closing_ports(step.ports)

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
    ReadClosing: "read_closing",
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
