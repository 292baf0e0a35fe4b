"""The processes of a worker: started, signalled as one, and gone before its port is given back.

A signal goes to the group, because a worker is often a shell with the real server below it: the shell dies of the
signal and leaves the server behind. What belongs to a worker is its process group, all descendants of its first
process, and what the supervisor adopted that was started with the worker's environment, or that it adopted at all when
it has no other worker. The first process is not waited for until the others are gone: while it is a zombie, the kernel
gives its number to nobody else.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from allocator.kernel.processes import is_stopped, process_table
from allocator.model.errors import AllocatorError
from allocator.model.names import shown
from allocator.model.values import Value, field
from allocator.supervisor.terminal import reset_in_child, start_sentry

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Mapping, Sequence

    from allocator.supervisor.children import Children

STRAYS_S = 0.5
"""How often the processes below a worker are looked at."""

LOOK_S, STANDS_STILL_S = 0.01, 0.3
"""How long a program has to tidy up after Ctrl-Z before it stands still."""

FIRST_PASSED_SOCKET = 3
"""The first passed socket, by sd_listen_fds(3)."""


class CommandError(AllocatorError):
    """The worker's command cannot be started.

    Attributes:
        status: What a shell would exit with: 127 when it does not exist, 126 when it cannot be run.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class StartOrder(Value, kw_only=True):
    """How a worker is started.

    Attributes:
        command: The arguments of its command.
        environment: Its whole environment.
        marker: A variable of that environment and its value, which only this worker's processes have.
        directory: Where it runs, or None for the supervisor's directory.
        capture: Which of `stdout` and `stderr` are read by the supervisor.
        listening: The sockets that it is given, by the names of their ports.
    """

    command: Sequence[str]
    environment: Mapping[str, str]
    marker: tuple[str, str]
    directory: Path | None = None
    capture: frozenset[str] = frozenset()
    listening: Mapping[str, socket.socket] = field(default_factory=dict)


class WorkerGroup:
    """A running worker and whatever it started.

    Args:
        order: How it is started.
        children: The supervisor's processes.

    Raises:
        CommandError: When the command cannot be started.
    """

    def __init__(self, order: StartOrder, children: Children) -> None:
        self._children = children
        self._marker = order.marker
        self._strays_at = 0.0
        self._terminal = children.terminal
        self._sentry: subprocess.Popen[bytes] | None = None
        lend = self._terminal is not None and self._terminal.is_lent_at_once()
        prepare = _prepared(children.before_command(), reset_in_child(self._terminal, lend=lend))
        shares_no_input = self._terminal is not None and not self._terminal.lends and os.isatty(0)
        try:
            with children.starting:
                self._process = subprocess.Popen(
                    list(order.command),
                    env=dict(order.environment),
                    cwd=order.directory,
                    process_group=0,
                    preexec_fn=_passing(order, prepare) if order.listening else prepare,  # noqa: PLW1509  # no lock
                    stdin=subprocess.DEVNULL if shares_no_input else None,
                    stdout=subprocess.PIPE if "stdout" in order.capture else None,
                    stderr=subprocess.PIPE if "stderr" in order.capture else None,
                )
                children.started(self._process.pid)
        except FileNotFoundError as error:
            raise CommandError(
                f"the command {shown(order.command[0])} does not exist; check its name and PATH", 127
            ) from error
        except (OSError, subprocess.SubprocessError) as error:
            why = getattr(error, "strerror", None) or error
            raise CommandError(f"the command {shown(order.command[0])} cannot be run ({why})", 126) from error
        self.pid = self._process.pid
        if lend:
            self.lend_terminal()
        try:
            self._pidfd: int | None = os.pidfd_open(self.pid)
        except (OSError, AttributeError):  # a kernel without pidfd: the caller's time limit does the looking
            self._pidfd = None

    def __repr__(self) -> str:
        return f"<WorkerGroup {self.pid}, {len(self.members())} processes>"

    @property
    def pipes(self) -> list[tuple[str, BinaryIO]]:
        """The captured streams, by name."""
        named = (("stdout", self._process.stdout), ("stderr", self._process.stderr))
        return [(name, stream) for name, stream in named if stream is not None]  # type: ignore[misc]  # binary pipes

    @property
    def descriptor(self) -> int | None:
        """A descriptor that is readable once the first process has ended, or None."""
        return self._pidfd

    def has_ended(self) -> bool:
        """Return whether the first process has ended; it is not waited for yet."""
        if self._process.returncode is not None:
            return True
        try:
            return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:
            return True

    def status(self) -> int | None:
        """Return what the first process ended with (negative: its signal), which is not waited for yet, or None."""
        try:
            seen = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return None
        if seen is None:
            return None
        return seen.si_status if seen.si_code == os.CLD_EXITED else -seen.si_status

    def members(self) -> list[int]:
        """Return the living processes of the worker."""
        if self._process.returncode is not None:
            return []
        with self._children.starting:
            table = process_table()
            found = {self.pid} | {
                pid
                for pid, row in table.items()
                if (row.group == self.pid and pid != self._sentry_pid)
                or (self._children.is_adopted(pid, row.parent) and self._children.is_of(pid, self._marker))
            }
        grown = True
        while grown:
            below = {pid for pid, row in table.items() if row.parent in found and pid not in found}
            found |= below
            grown = bool(below)
        return [pid for pid in found if pid in table and table[pid].alive]

    @property
    def _sentry_pid(self) -> int | None:
        return self._sentry.pid if self._sentry else None

    def lend_terminal(self) -> None:
        """Let its group be the terminal's foreground group, and let the supervisor know what is typed there."""
        if self._terminal is None or self._process.returncode is not None:
            return
        self._terminal.lend(self.pid)
        if self._sentry is None and self._children.teller is not None:
            with self._children.starting:
                self._sentry = start_sentry(self.pid, self._children.teller)
                if self._sentry is not None:
                    self._children.employed(self._sentry.pid, yes=True)

    @property
    def has_terminal(self) -> bool:
        """Whether it has the terminal, or had it when it ended."""
        return self._terminal is not None and self._terminal.is_lent

    def stop(self) -> None:
        """Let it stand still: as Ctrl-Z asks it to, or anyway."""
        self.signal(signal.SIGTSTP)
        until = time.monotonic() + STANDS_STILL_S
        while not (stopped := self.is_stopped()) and not self.has_ended() and time.monotonic() < until:
            time.sleep(LOOK_S)
        if not stopped:
            self.signal(signal.SIGSTOP)

    def stopped_by(self) -> int | None:
        """Return the signal that stopped the first process since this was asked last, or None."""
        try:
            seen = os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOHANG)
        except ChildProcessError:
            return None
        return None if seen is None else seen.si_status

    def is_stopped(self) -> bool:
        """Return whether its first process stands still, by whatever signal."""
        return is_stopped(self.pid)

    def watch_strays(self) -> None:
        """Let the guard know what has left the group; at most every half second."""
        now = time.monotonic()
        if now >= self._strays_at:
            self._strays_at = now + STRAYS_S
            self._children.watch_strays(self.pid)

    def signal(self, number: int) -> None:
        """Send a signal to every process of the worker."""
        if self._process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)
        for pid in self.members():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if os.getpgid(pid) != self.pid:
                    os.kill(pid, number)

    def terminate(self) -> None:
        """Ask every process to end; one that is stopped is continued, so that it can."""
        self.signal(signal.SIGTERM)
        self.signal(signal.SIGCONT)

    def finish(self) -> int:
        """Wait for the first process, once the worker has ended, and return its status (negative: its signal)."""
        self._dismiss_sentry()
        code = self._process.wait()
        self._children.ended(self.pid)
        self._children.reap()
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None
        return code

    def _dismiss_sentry(self) -> None:
        if self._terminal is not None:
            self._terminal.take_back()
        if self._sentry is not None:
            self._sentry.kill()
            self._sentry.communicate()
            self._children.employed(self._sentry.pid, yes=False)


def _prepared(*steps: Callable[[], None]) -> Callable[[], None]:
    def prepare() -> None:
        for step in steps:
            step()

    return prepare


def _close_on_exec(first: int) -> None:
    """Let no descriptor from `first` on reach the command: whoever started the supervisor may have left some open.

    They are not closed: through one of them the parent learns when the command cannot be started.
    """
    try:
        numbers = [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]
    except OSError:
        numbers = list(range(first, os.sysconf("SC_OPEN_MAX")))
    for number in numbers:
        if number >= first:
            with contextlib.suppress(OSError):
                os.set_inheritable(number, False)


def _passing(order: StartOrder, bind: Callable[[], None]) -> Callable[[], None]:
    """Return what a child does that is given sockets: it becomes its command itself, for only it knows its pid."""
    descriptors = [listening.fileno() for listening in order.listening.values()]
    above = FIRST_PASSED_SOCKET + len(descriptors)  # where none is overwritten before it was passed on
    names = ":".join(name or "port" for name in order.listening)
    environment = dict(order.environment) | {"LISTEN_FDS": str(len(descriptors)), "LISTEN_FDNAMES": names}

    def become() -> None:
        bind()
        spares = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, above) for descriptor in descriptors]
        for at, spare in enumerate(spares):
            os.dup2(spare, FIRST_PASSED_SOCKET + at)
        _close_on_exec(above)
        os.execvpe(order.command[0], list(order.command), environment | {"LISTEN_PID": str(os.getpid())})  # noqa: S606

    return become
