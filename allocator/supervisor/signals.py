"""The supervisor's own signals, as numbers that can be waited for together with the end of its workers."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from typing import Self

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
PASSED_SIGNALS = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_WAKE = 0
"""Not a signal: somebody only wants the waiter to look."""


class Signals:
    """Catches signals while it is entered; in the main thread only."""

    def __init__(self) -> None:
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Self:
        self._reader, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        for number in (*STOP_SIGNALS, *PASSED_SIGNALS, signal.SIGCHLD):
            self._previous[number] = signal.signal(number, lambda *_: None)
        self._previous_wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        return self

    def __exit__(self, *exc_info: object) -> None:
        signal.set_wakeup_fd(self._previous_wakeup)
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal() returned
        os.close(self._reader)
        os.close(self._writer)

    def wake(self) -> None:
        """Let `wait` return; from any thread."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._writer, bytes([_WAKE]))

    def wait(self, timeout_s: float | None) -> list[int]:
        """Return the signals that came, in their order; empty when it was woken or the time passed."""
        poller = select.poll()
        poller.register(self._reader, select.POLLIN)
        if not poller.poll(None if timeout_s is None else timeout_s * 1_000):
            return []
        with contextlib.suppress(BlockingIOError):
            return [number for number in os.read(self._reader, 256) if number != _WAKE]
        return []
