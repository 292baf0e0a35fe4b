"""Whose a port is: the processes' that should have it, or a stranger's, or both.

Two programs can listen on one port: with SO_REUSEPORT, on one address family each, or one on an address of its own.
The kernel then gives the stranger a part of the connections.
"""

from __future__ import annotations

import socket
from enum import Enum
from typing import TYPE_CHECKING

from allocator.kernel.socket_tables import listening_sockets
from allocator.kernel.sockets import listener_of, socket_inodes
from allocator.model.values import Value

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from allocator.kernel.socket_tables import ListeningSocket


class Owner(Enum):
    """Who listens on a port."""

    NOBODY = "nobody"
    WORKER = "worker"
    STRANGER = "stranger"


class PortState(Value):
    """What was seen of a port.

    Attributes:
        owner: Who listens.
        address: Where the worker's listener answers, or None.
        strangers: The listening sockets that are not the worker's.
    """

    owner: Owner
    address: str | None = None
    strangers: tuple[ListeningSocket, ...] = ()


class PortWatch:
    """Looks at one port for one worker.

    Args:
        port: The port.
        members: Gives the worker's processes.
    """

    def __init__(self, port: int, members: Callable[[], list[int]]) -> None:
        self._port = port
        self._members = members
        self._known: frozenset[ListeningSocket] = frozenset()

    def look(self) -> PortState:
        """Return who listens on the port now; listeners that were the worker's before are not looked up again."""
        rows = self._rows()
        if not rows:
            return PortState(Owner.NOBODY)
        own = self._known & rows
        strangers: frozenset[ListeningSocket] = frozenset()
        if own != rows:
            own = self._own_rows(rows)
            if own != rows:
                strangers = (rows - own) & self._rows()  # one that is gone by now may have been the worker's
            self._known = own
        if not own:
            return PortState(Owner.STRANGER, strangers=tuple(sorted(strangers)))
        return PortState(Owner.WORKER, _reached_at(min(own)), tuple(sorted(strangers)))

    def _rows(self) -> frozenset[ListeningSocket]:
        return frozenset(listening_sockets(self._port, self._port))

    def _own_rows(self, rows: frozenset[ListeningSocket]) -> frozenset[ListeningSocket]:
        pids = self._members()
        if any(row.pid is not None for row in rows):
            return frozenset(row for row in rows if row.pid in pids)
        inodes, hidden = socket_inodes(pids)
        # A worker that runs as another user hides its descriptors: nobody can be shown to be a stranger.
        return rows if hidden else frozenset(row for row in rows if row.inode in inodes)


def described(strangers: Sequence[ListeningSocket]) -> str:
    """Return who else listens on a port, for people: `process 4711 (nginx) of root on 0.0.0.0`; empty for nobody."""
    if not strangers:
        return ""
    first = strangers[0]
    address = socket.inet_ntop(first.family, first.packed)
    who = listener_of(first)
    if who.pid is None:
        return f"another process listens on port {first.port} as well, on {address}"
    of_user = f" of {who.user}" if who.user else ""
    return f"process {who.pid} ({who.command or '?'}){of_user} listens on port {first.port} as well, on {address}"


def _reached_at(row: ListeningSocket) -> str:
    if not any(row.packed):
        return "127.0.0.1" if row.family == socket.AF_INET else "::1"
    return socket.inet_ntop(row.family, row.packed)
