"""The supervisor's own signals, as numbers that can be waited for together with the end of its workers.

What was ignored when it was started stays ignored, by its workers too: SIGHUP under `nohup`, Ctrl-C in a script's
background.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
PASSED_SIGNALS = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
JOB_SIGNALS = (signal.SIGTSTP, signal.SIGCONT)
STOPS_WITHIN_S = 0.5
"""How soon the kernel stops a process that stops itself; one whose group no shell looks after goes on."""
_WAKE = 0
"""Not a signal: somebody only wants the waiter to look."""


class Signals:
    """Catches signals while it is entered; in the main thread only."""

    def __init__(self) -> None:
        self._previous: dict[int, object] = {}
        self._waiting: list[int] = []

    def __enter__(self) -> Self:
        self._reader, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        for number in (*STOP_SIGNALS, *PASSED_SIGNALS, *JOB_SIGNALS, signal.SIGCHLD):
            if number == signal.SIGCHLD or signal.getsignal(number) is not signal.SIG_IGN:
                self._previous[number] = signal.signal(number, _record)
        self._previous_wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        return self

    def __exit__(self, *exc_info: object) -> None:
        signal.set_wakeup_fd(self._previous_wakeup)
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal() returned
        os.close(self._reader)
        os.close(self._writer)

    @property
    def writer(self) -> int:
        """Where a process may write the number of a signal that it got."""
        return self._writer

    def stop_own_group(self, number: int) -> None:
        """Stop this process and those that a shell started with it, as Ctrl-Z does, until somebody lets them go on."""
        wanted = number if number in {signal.SIGTSTP, signal.SIGTTIN} else signal.SIGTSTP
        before = signal.signal(wanted, signal.SIG_DFL)
        try:
            os.killpg(os.getpgrp(), wanted)
            until = time.monotonic() + STOPS_WITHIN_S
            # It may take a moment until the kernel stops it: what follows must not happen before.
            while signal.SIGCONT not in self._waiting and (left_s := until - time.monotonic()) > 0:
                self._waiting += self._read(left_s)
        finally:
            signal.signal(wanted, before)
        self._waiting = [each for each in self._waiting if each != signal.SIGCONT]

    def wake(self) -> None:
        """Let `wait` return; from any thread."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._writer, bytes([_WAKE]))

    def wait(self, timeout_s: float | None) -> list[int]:
        """Return the signals that came, in their order; empty when it was woken or the time passed."""
        waiting, self._waiting = self._waiting, []
        return waiting or self._read(timeout_s)

    def _read(self, timeout_s: float | None) -> list[int]:
        poller = select.poll()
        poller.register(self._reader, select.POLLIN)
        if not poller.poll(None if timeout_s is None else timeout_s * 1_000):
            return []
        with contextlib.suppress(BlockingIOError):
            return [number for number in os.read(self._reader, 256) if number != _WAKE]
        return []


def _record(number: int, frame: FrameType | None) -> None:
    """Do nothing: its number is in the pipe."""
