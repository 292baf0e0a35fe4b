"""Whose a port is: the processes' that should have it, or a stranger's."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from allocator.kernel.socket_tables import listening_sockets
from allocator.kernel.sockets import socket_inodes

if TYPE_CHECKING:
    from collections.abc import Callable

    from allocator.kernel.socket_tables import ListeningSocket


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
    """Looks at one port for one worker.

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
