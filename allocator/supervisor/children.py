"""The processes of one supervisor: it adopts the processes that workers leave behind, and reaps those that have ended.

A process whose parent ends is given to init; as a "subreaper" the supervisor is given it instead, and so finds the
listener that a wrapper left behind, or a daemon that left the worker's process group. It must never wait for a child
that a worker's own thread waits for.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Self

from allocator.kernel.identity import start_time_of
from allocator.kernel.processes import children_of, descendants_of, group_of, has_variable, process_table
from allocator.store.embedded.process import is_embedded_server
from allocator.supervisor.cgroup import enter_group, make_group, remove_group
from allocator.supervisor.guard import Guard

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from allocator.supervisor.terminal import Terminal

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
MARK = "ALLOCATOR_SUPERVISION"
"""The variable that every process of this supervisor's workers inherits, and no other process has."""

LOOK_S = 0.02
MOST_ENDED = 100
"""How often what was left behind is looked for again, while it forks faster than it is ended."""


class Children:
    """What all workers of a supervisor share: parenthood, the guard, the control group.

    Args:
        orphans_end: Whether workers are ended when the supervisor is killed.
        of_one: Whether there is only one worker, so that whatever is adopted is its.
        terminal: The terminal that somebody watches, or None.
        teller: Where a sentry tells what was typed there (see `terminal`).
    """

    def __init__(
        self, *, orphans_end: bool, of_one: bool, terminal: Terminal | None = None, teller: int | None = None
    ) -> None:
        self.orphans_end, self._of_one = orphans_end, of_one
        self.terminal, self.teller = terminal, teller
        self._sure = False
        self.mark = os.urandom(16).hex()
        self.guard = Guard(f"{MARK}={self.mark}")
        self._group: Path | None = None
        self.starting = threading.Lock()
        """Held while a process is started, and while the worker of a process is looked up."""
        self._own: set[int] = set()
        self._watching = threading.Lock()
        self._strays: dict[int, set[tuple[int, int]]] = {}

    def __enter__(self) -> Self:
        # What came before `exec allocator run` in a script, and whatever is orphaned in a container whose first process
        # this is, is given to it as well: then only the mark tells whose a process is.
        self._sure = os.getpid() != 1 and not children_of(os.getpid())
        if _LIBC is not None:
            _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        if self.orphans_end:
            self._group = self.guard.group = make_group(self.mark)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._end_adopted()
        self.guard.__exit__(*exc_info)
        if self._group is not None:
            remove_group(self._group)
        if _LIBC is not None:
            _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)

    def __repr__(self) -> str:
        return f"<Children {sorted(self._own)}, {self.guard!r}>"

    def wake(self) -> None:
        """Let the main thread look at its children; from any thread."""
        if self.teller is not None:
            with contextlib.suppress(BlockingIOError):
                os.write(self.teller, bytes([signal.SIGCHLD]))

    def before_command(self) -> Callable[[], None]:
        """Return the function that a new child calls before it runs its command: it ends when the supervisor does."""
        if not self.orphans_end:
            return lambda: None
        with self.starting:
            parent, writer, group = os.getpid(), self.guard.ready(), self._group

        def bind() -> None:
            if _LIBC is not None:
                _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
                if os.getppid() != parent:
                    os._exit(1)
            if group is not None:
                enter_group(group)
            with contextlib.suppress(OSError):
                os.write(writer, b"add %d\n" % os.getpid())

        return bind

    def started(self, pid: int) -> None:
        """Note a child that was started; its own thread waits for it."""
        self._own.add(pid)
        if self.orphans_end:
            self.guard.added(pid)

    def employed(self, pid: int, *, yes: bool) -> None:
        """Note that a child is the supervisor's own helper, or that it has ended."""
        (self._own.add if yes else self._own.discard)(pid)

    def ended(self, pid: int) -> None:
        """Note that a child was waited for and its group is empty."""
        self._own.discard(pid)
        with self._watching:
            self._strays.pop(pid, None)
        if self.orphans_end:
            self.guard.forget(pid)

    def is_adopted(self, pid: int, parent: int) -> bool:
        """Return whether a process came to the supervisor from a parent that ended.

        To be asked with `starting` held. The embedded server, which any command may start, is nobody's.
        """
        if parent != os.getpid() or pid in self._own or pid == self.guard.pid:
            return False
        return not is_embedded_server(pid)

    def is_of(self, pid: int, marker: tuple[str, str]) -> bool:
        """Return whether an adopted process is of the worker whose processes have this variable."""
        return (self._sure and self._of_one) or has_variable(pid, *marker)

    def _is_a_workers(self, pid: int, parent: int) -> bool:
        return self.is_adopted(pid, parent) and (self._sure or has_variable(pid, MARK, self.mark))

    def watch_strays(self, group: int) -> None:
        """Send the guard the pids that left a worker's group; it cannot find those that cleared their environment."""
        if not self.orphans_end or self.guard.pid is None:
            return
        with self.starting:
            adopted = [pid for pid in children_of(os.getpid()) if self._is_a_workers(pid, os.getpid())]
        below = descendants_of(group, *adopted)
        left = {pid for pid in below if group_of(pid) not in self._own} | set(adopted)
        started = {pid: start_time_of(pid) for pid in left}
        with self._watching:
            self._strays[group] = {(pid, at) for pid, at in started.items() if at is not None}
            self.guard.watch(set().union(*self._strays.values()))

    def _end_adopted(self) -> None:
        """End what workers left behind that belong to no worker in particular, and reap it."""
        for _ in range(MOST_ENDED):
            with self.starting:
                table = process_table()
                adopted = [pid for pid, row in table.items() if self._is_a_workers(pid, row.parent)]
            for pid in adopted:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            if not any(table[pid].alive for pid in adopted):
                break
            time.sleep(LOOK_S)
        self.reap()

    def reap(self) -> None:
        """Wait for adopted processes that have ended, so that no zombie stays; the guard is not to be missed either."""
        with self.starting:
            if self._own and self.orphans_end:
                self.guard.ready()
            for pid, row in process_table().items():
                if not row.alive and self.is_adopted(pid, row.parent):
                    with contextlib.suppress(ChildProcessError):
                        os.waitpid(pid, os.WNOHANG)


def give_back_memory() -> None:
    """Return what the C library's allocator holds free to the system: a third of a supervisor after its imports."""
    trim = getattr(_LIBC, "malloc_trim", None)
    if trim is not None:
        trim(0)
