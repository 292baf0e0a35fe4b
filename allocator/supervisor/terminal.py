r"""The terminal that a supervisor was started at: lent to its one worker, and taken back when that one has ended.

A terminal sends Ctrl-C, Ctrl-\ and Ctrl-Z to one process group, its foreground group, and lets only that one read. It
is the worker's, as in a shell without a supervisor between. The supervisor has to know what was typed all the same, so
a sentry stands in the worker's group: a shell that only tells of SIGINT and SIGQUIT. Source: "Implementing a Job
Control Shell" in the manual of the GNU C library.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import stat
import subprocess
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable

TYPED = 128
"""A signal that was typed at the terminal, so that the worker has it already: this and its number."""

_SENTRY = """
trap '' HUP TERM USR1 USR2 PIPE
trap 'came=yes; printf "\\202"' INT
trap 'came=yes; printf "\\203"' QUIT
while :; do
    came=''
    read -r word || [ -n "$came" ] || exit 0
done
"""
"""Writes `TYPED` and the number of the signal. A signal interrupts `read`, which then fails as at the end of input."""


class Terminal:
    """The controlling terminal of this process.

    Args:
        descriptor: It, open; `open_terminal` opens it.
        lends: Whether a worker may have it: not of several.
    """

    def __init__(self, descriptor: int, *, lends: bool) -> None:
        self._descriptor, self._lends = descriptor, lends
        self._lent = False
        self._ignored_before: object = None

    def __enter__(self) -> Self:
        # Who writes to a terminal, or lends it, while another group is in its foreground is stopped by this.
        self._ignored_before = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.take_back()
        signal.signal(signal.SIGTTOU, self._ignored_before)  # type: ignore[arg-type]  # what signal() returned
        os.close(self._descriptor)

    def __repr__(self) -> str:
        return f"<Terminal {'lent' if self._lent else 'kept'}>"

    @property
    def is_lent(self) -> bool:
        """Whether the worker has it."""
        return self._lent

    @property
    def lends(self) -> bool:
        """Whether a worker may have it."""
        return self._lends

    def is_ours(self) -> bool:
        """Return whether this process is in the foreground."""
        try:
            return os.tcgetpgrp(self._descriptor) == os.getpgrp()
        except OSError:
            return False

    def is_gone(self) -> bool:
        """Return whether it was closed: the window, the connection."""
        poller = select.poll()
        poller.register(self._descriptor, 0)
        return any(events & (select.POLLHUP | select.POLLERR | select.POLLNVAL) for _, events in poller.poll(0))

    def is_lent_at_once(self) -> bool:
        """Return whether a new worker gets it before it asks: not beside a pager, which reads it as well."""
        return self._lends and self.is_ours() and os.isatty(0) and not _is_pipe(1)

    def lend_from_child(self) -> None:
        """Take it, as the first process of a new group, before it becomes its command."""
        with contextlib.suppress(OSError):
            os.tcsetpgrp(self._descriptor, os.getpid())

    def lend(self, group: int) -> None:
        """Let a group have it."""
        with contextlib.suppress(OSError):
            os.tcsetpgrp(self._descriptor, group)
            self._lent = True

    def take_back(self) -> None:
        """Have it again when it was lent."""
        if self._lent:
            with contextlib.suppress(OSError):
                os.tcsetpgrp(self._descriptor, os.getpgrp())
        self._lent = False


def open_terminal(*, lends: bool) -> Terminal | None:
    """Return the terminal of this session, whether or not a standard stream is one, or None when it has none."""
    try:
        return Terminal(os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC | os.O_NOCTTY), lends=lends)
    except OSError:
        return None


def reset_in_child(terminal: Terminal | None, *, lend: bool) -> Callable[[], None]:
    """Return what a new child does about the terminal before it becomes its command."""

    def reset() -> None:
        if terminal is not None:
            if lend:
                terminal.lend_from_child()
            signal.signal(signal.SIGTTOU, signal.SIG_DFL)

    return reset


def start_sentry(group: int, teller: int) -> subprocess.Popen[bytes] | None:
    """Start the sentry of a worker's group; it ends when its input is closed.

    Args:
        group: The group that has the terminal.
        teller: Where it writes what was typed.

    Returns:
        The sentry, or None when the group has ended already.
    """
    try:
        return subprocess.Popen(
            ["/bin/sh", "-c", _SENTRY, "allocator-sentry"],
            stdin=subprocess.PIPE,
            stdout=teller,
            stderr=subprocess.DEVNULL,
            process_group=group,
        )
    except (OSError, subprocess.SubprocessError):
        return None


def _is_pipe(descriptor: int) -> bool:
    try:
        return stat.S_ISFIFO(os.fstat(descriptor).st_mode)
    except OSError:
        return False
