"""The processes of one supervisor: it adopts what its workers leave behind, and takes in what has ended.

A process whose parent ends is given to init; as a "subreaper" the supervisor is given it instead, and so finds the
listener that a wrapper left behind. It must never wait for a child that a worker's own thread waits for.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING, Self

from allocator.kernel.processes import process_table
from allocator.supervisor.guard import Guard

if TYPE_CHECKING:
    from collections.abc import Callable

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


class Children:
    """What all workers of a supervisor share of the kernel.

    Args:
        orphans_end: Whether workers are ended when the supervisor is killed.
    """

    def __init__(self, *, orphans_end: bool) -> None:
        self.orphans_end = orphans_end
        self.guard = Guard()
        self.starting = threading.Lock()
        """Held while a process is started, so that it is known before anybody asks whose it is."""
        self._own: set[int] = set()

    def __enter__(self) -> Self:
        if _LIBC is not None:
            _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.guard.__exit__(*exc_info)
        self.take_in()
        if _LIBC is not None:
            _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)

    def __repr__(self) -> str:
        return f"<Children {sorted(self._own)}, {self.guard!r}>"

    def before_command(self) -> Callable[[], None]:
        """Return what a new child does before it becomes its command: it is tied to the supervisor's life."""
        if not self.orphans_end:
            return lambda: None
        parent, writer = os.getpid(), self.guard.ready()

        def tie() -> None:
            if _LIBC is not None:
                _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
                if os.getppid() != parent:
                    os._exit(1)
            with contextlib.suppress(OSError):
                os.write(writer, b"add %d\n" % os.getpid())

        return tie

    def started(self, pid: int) -> None:
        """Note a child that was started; its own thread waits for it."""
        self._own.add(pid)
        if self.orphans_end:
            self.guard.added(pid)

    def ended(self, pid: int) -> None:
        """Note that a child was waited for and its group is empty."""
        self._own.discard(pid)
        if self.orphans_end:
            self.guard.forget(pid)

    def is_adopted(self, pid: int, parent: int) -> bool:
        """Return whether a process came to the supervisor from a parent that ended."""
        return parent == os.getpid() and pid not in self._own and pid != self.guard.pid

    def take_in(self) -> None:
        """Wait for adopted processes that have ended, so that no zombie stays."""
        with self.starting:
            for pid, row in process_table().items():
                if not row.alive and self.is_adopted(pid, row.parent):
                    with contextlib.suppress(ChildProcessError):
                        os.waitpid(pid, os.WNOHANG)


def give_back_memory() -> None:
    """Return what the C library's allocator holds free to the system: a third of a supervisor after its imports."""
    trim = getattr(_LIBC, "malloc_trim", None)
    if trim is not None:
        trim(0)
