"""Whose a worker's port is: its own processes' or a stranger's; and how a worker says that it could not have it."""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from allocator.kernel.socket_tables import listening_sockets
from allocator.kernel.sockets import socket_inodes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from allocator.kernel.socket_tables import ListeningSocket

SERVER_FAILED = 2
"""What a worker of the plugin SDK exits with when its HTTP server could not listen."""

_IN_USE = re.compile(rb"EADDRINUSE|address already in use", re.IGNORECASE)
_SOME_PORT = re.compile(rb":([0-9]{2,5})\b|\bport\W{0,3}([0-9]{2,5})\b", re.IGNORECASE)


class Owner(Enum):
    """Who listens on a port."""

    NOBODY = "nobody"
    WORKER = "worker"
    STRANGER = "stranger"


@dataclass(frozen=True, slots=True)
class PortState:
    """What was seen of a port.

    Attributes:
        owner: Who listens.
        address: Where the worker's listener answers, or None.
    """

    owner: Owner
    address: str | None = None


class PortWatch:
    """Looks at one port for one start of a worker.

    Args:
        port: The port.
        members: Gives the worker's processes.
    """

    def __init__(self, port: int, members: Callable[[], list[int]]) -> None:
        self._port = port
        self._members = members
        self._known: ListeningSocket | None = None

    def look(self) -> PortState:
        """Return who listens on the port now; a listener that was the worker's before is not looked up again."""
        rows = [row for row in listening_sockets() if row.port == self._port]
        if not rows:
            return PortState(Owner.NOBODY)
        if self._known in rows and len(rows) == 1:
            return PortState(Owner.WORKER, _reached_at(rows[0]))
        row = self._own_row(rows)
        if row is None:
            return PortState(Owner.STRANGER)
        self._known = row
        return PortState(Owner.WORKER, _reached_at(row))

    def _own_row(self, rows: list[ListeningSocket]) -> ListeningSocket | None:
        pids = self._members()
        if any(row.pid is not None for row in rows):
            return next((row for row in rows if row.pid in pids), None)
        inodes, hidden = socket_inodes(pids)
        for row in rows:
            if row.inode in inodes:
                return row
        # The worker runs as another user and hides its descriptors: nobody can be shown to be a stranger.
        return rows[0] if hidden else None


def _reached_at(row: ListeningSocket) -> str:
    if not any(row.packed):
        return "127.0.0.1" if row.family == socket.AF_INET else "::1"
    return socket.inet_ntop(row.family, row.packed)


def says_in_use(lines: Iterable[bytes], port: int) -> bool:
    """Return whether a worker's standard error says that this port is in use; another port that it names is not it."""
    for line in lines:
        if _IN_USE.search(line):
            named = {int(one or other) for one, other in _SOME_PORT.findall(line)}
            if not named or port in named:
                return True
    return False
