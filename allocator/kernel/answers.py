"""What this host answers to the steps of an operation: who listens, what binds, who lives. Short reads and a bind.

A list of listeners is a photograph; `prove_port` is the arbiter. Neither keeps anything open.

Whoever drives a claim in another way overrides a method; tests put others in their place.
"""

from __future__ import annotations

import errno
import socket
import sys
from time import monotonic
from typing import TYPE_CHECKING

from allocator.kernel.socket_tables import closing_ports, listening_ports
from allocator.kernel.sockets import listeners
from allocator.model.errors import ConfigurationError
from allocator.operations.steps import (
    DescribeListener,
    JudgeHolder,
    ProvePorts,
    ReadClosing,
    ReadListeners,
    Step,
    StoreLeases,
    StoreTokens,
    Warn,
)

if TYPE_CHECKING:
    from allocator.operations.steps import Judgement

QUIET_S = 1.0
"""How long a listing that showed nobody is good enough: who listens since then is found by the bind of the proof."""

_PROBE_BACKLOG = 1

_NO_SUCH_FAMILY = frozenset({errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL})
"""A kernel without IPv6, and one where it is switched off."""

_PROOF_ADDRESSES = (
    (socket.AF_INET, "127.0.0.1"),
    (socket.AF_INET6, "::1"),
    (socket.AF_INET, "0.0.0.0"),  # noqa: S104  # where workers bind
    (socket.AF_INET6, "::"),
)
"""What is tried one by one where one bind of both families does not do: BSD and macOS let a bind of any address pass
beside a listener on one address when SO_REUSEADDR is set, so that the loopback addresses, where strangers mostly are,
are tried as well."""


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
        return closing_ports(step.ports)

    def judge_holder(self, step: JudgeHolder) -> Judgement:
        """Return what is known of the processes of a lease that is in the way."""
        from allocator.kernel.holders import judge

        return judge(step.holder, step.host)

    def store_tokens(self, step: StoreTokens) -> tuple[str, ...]:
        """Return the tokens to claim with."""
        return step.tokens

    def store_leases(self, step: StoreLeases) -> bool:
        """Return that the leases are the caller's."""
        del step
        return True

    def warn(self, step: Warn) -> None:
        """Ignore a warning: a program that uses the library has no terminal to show it on."""

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
    StoreTokens: "store_tokens",
    StoreLeases: "store_leases",
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


def prove_port(port: int) -> bool:
    """Return whether a worker could listen on `port` of all addresses just now.

    Binds and listens on IPv4 and on IPv6 with SO_REUSEADDR, as most servers do, and closes at once. Listening is
    part of the proof: with SO_REUSEADDR two sockets may be bound to one port as long as neither listens; such a
    stranger, bound and silent, does not keep a worker from listening and is not in the way here either. Connections
    in TIME_WAIT do not matter where their server had set SO_REUSEADDR (`closing_ports` finds the others). On Linux one
    socket of both families meets whatever either of the two would meet, so that one does for both.

    Raises:
        ConfigurationError: When this user may not bind the port, or the kernel refuses for a reason of its own
            (no descriptors left); it proves nothing about the port.
    """
    try:
        if sys.platform == "linux" and (free := _can_listen(socket.AF_INET6, "::", port, both=True)) is not None:
            return free
        return all(_can_listen(family, address, port) is not False for family, address in _PROOF_ADDRESSES)
    except PermissionError as error:
        raise ConfigurationError(
            f"this user may not bind port {port}; use a pool above port 1023, or give the worker CAP_NET_BIND_SERVICE",
            port=port,
        ) from error
    except OSError as error:
        raise ConfigurationError(
            f"port {port} could not be tried on this host ({error.strerror or error}); "
            "fix that (see 'ulimit -n' for descriptors) and claim again",
            port=port,
        ) from error


def _can_listen(family: int, address: str, port: int, *, both: bool = False) -> bool | None:
    """Return whether a socket can listen there, or None on a host without the family."""
    try:
        probe = socket.SocketType(family, socket.SOCK_STREAM)  # what `socket.socket` wraps, at half its cost
    except OSError as error:
        if error.errno in _NO_SUCH_FAMILY:
            return None
        raise
    try:
        if family == socket.AF_INET6:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not both)
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((address, port))
        probe.listen(_PROBE_BACKLOG)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return False
        if error.errno in _NO_SUCH_FAMILY:
            return None
        raise
    finally:
        probe.close()
    return True
