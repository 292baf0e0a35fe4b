"""What a service tells systemd (sd_notify(3)): that it is ready, that it still runs, that it ends."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


class ServiceManager:
    """The service manager that started this process, if one did.

    Args:
        environ: Where `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID` stand.
        clock: The monotonic clock, in seconds.
    """

    def __init__(self, environ: Mapping[str, str], clock: Callable[[], float]) -> None:
        path = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + path[1:] if path.startswith("@") else path
        self._clock = clock
        usec, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", str(os.getpid()))
        watched = usec.isdecimal() and pid == str(os.getpid())
        self._every_s = int(usec) / 2_000_000 if watched else None
        self._next_at = clock()

    def ready(self, status: str) -> None:
        """Report that the service is ready."""
        self._send(f"READY=1\nSTATUS={status}")

    def stopping(self) -> None:
        """Report that the service ends."""
        self._send("STOPPING=1")

    def beat(self) -> None:
        """Report that it still runs, as often as twice the time in which the manager wants to hear it."""
        if self._every_s is not None and self._clock() >= self._next_at:
            self._next_at = self._clock() + self._every_s
            self._send("WATCHDOG=1")

    def _send(self, message: str) -> None:
        if self._address:
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
                channel.sendto(message.encode(), self._address)
