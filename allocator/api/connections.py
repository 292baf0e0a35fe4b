"""Accepts connections and bounds them: how many there are, and how many of one address.

The rules of this file: a connection that has not sent its whole request, or waits between two, is worth less than one
that is being answered. When there are as many as there may be, a new one takes the place of the one that has been
waiting longest, so that a client that sends its request at once is always served. Nothing is logged for each
connection: what repeats is one line a minute (see `repeats`). May not live here: HTTP's own rules (uvicorn's), routes.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import resource
import socket
from collections import Counter, OrderedDict
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, Any

from allocator.api.problems import MEDIA_TYPE, TOO_MANY_CONNECTIONS, problem

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

HEAD_S = 10.0
"""How long the head of a request may take, from the connection (or its last request's end) on; a TLS handshake too."""
MOST = 10_000
SPARE_FILES = 64
"""Descriptors left for Redis, the database, the log and the files of the page."""
ACCEPTED_AT_ONCE = 64
PAUSE_S = 0.2
"""How long no connection is accepted when there is neither room nor anybody to make room."""
_NO_ROOM = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


USER_EXTENSION = "portlease.user"
"""The extension of an ASGI scope that returns the user at the other end of its connection, None where nobody knows."""
log = logging.getLogger("allocator.api")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    """How many connections there may be.

    Attributes:
        total: In all.
        by_address: From one address; a network of 2^64 addresses in IPv6 counts as one.
    """

    total: int
    by_address: int

    @classmethod
    def of_this_process(cls) -> ConnectionLimits:
        """Return limits below the number of files that this process may open."""
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        files = MOST + SPARE_FILES if soft == resource.RLIM_INFINITY else soft
        total = max(8, min(MOST, files - max(SPARE_FILES, files // 16)))
        return cls(total=total, by_address=total - total // 8)


def _refusal() -> bytes:
    """Return the answer to a client that there is no room for, whatever it asks."""
    detail = "as many connections as this server may have are open; try again in a second"
    body = bytes(problem(TOO_MANY_CONNECTIONS, detail).body)
    head = (
        f"HTTP/1.1 503 Service Unavailable\r\nContent-Type: {MEDIA_TYPE}\r\nRetry-After: 1\r\n"
        f"Connection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Phase(Enum):
    """What a connection is doing; those before `ANSWERED` can be closed in favour of a new one, first to last."""

    SENDING = auto()
    IDLE = auto()
    NOT_TAKING = auto()
    ANSWERED = auto()


class Connection:
    """One connection, from its acceptance on.

    Args:
        connections: Where it is counted.
        address: What it is counted under; None for a Unix socket.
    """

    def __init__(self, connections: Connections, address: str | None) -> None:
        self._connections = connections
        self.address = address
        self.phase = Phase.SENDING
        self.end: Callable[[], object] = _nothing
        connections.add(self)

    def __repr__(self) -> str:
        return f"<Connection of {self.address or 'a Unix socket'}, {self.phase.name.lower()}>"

    def become(self, phase: Phase) -> None:
        """Report what the connection is doing from now on."""
        if phase is not self.phase:
            self._connections.move(self, phase)

    def forget(self) -> None:
        """Count the connection no more."""
        self._connections.discard(self)


def _nothing() -> None:
    """End a connection that nobody serves yet."""


class Connections:
    """All connections of a server.

    Args:
        limits: How many there may be.
    """

    def __init__(self, limits: ConnectionLimits) -> None:
        self.limits = limits
        self._by_phase: dict[Phase, OrderedDict[Connection, None]] = {phase: OrderedDict() for phase in Phase}
        self._by_address: Counter[str] = Counter()

    def __repr__(self) -> str:
        counts = ", ".join(f"{len(found)} {phase.name.lower()}" for phase, found in self._by_phase.items())
        return f"<Connections: {counts}>"

    def __len__(self) -> int:
        return sum(map(len, self._by_phase.values()))

    def add(self, connection: Connection) -> None:
        """Count a connection."""
        self._by_phase[connection.phase][connection] = None
        if connection.address is not None:
            self._by_address[connection.address] += 1

    def discard(self, connection: Connection) -> None:
        """Count a connection no more; once is enough."""
        if self._by_phase[connection.phase].pop(connection, self) is self or connection.address is None:
            return
        self._by_address[connection.address] -= 1
        if not self._by_address[connection.address]:
            del self._by_address[connection.address]

    def move(self, connection: Connection, phase: Phase) -> None:
        """Put a connection behind all others of a phase."""
        known = self._by_phase[connection.phase].pop(connection, self) is not self
        connection.phase = phase
        if known:
            self._by_phase[phase][connection] = None

    def make_room(self, address: str | None) -> bool:
        """Return whether an address may have one more connection, ending the one that waits longest if need be."""
        if address is not None and self._by_address[address] >= self.limits.by_address:
            log.warning(
                "the %d connections that one address may have are open; the one that has waited longest is closed",
                self.limits.by_address,
            )
            return self.end_idlest(address)
        if len(self) >= self.limits.total:
            log.warning(
                "the %d connections that this server may have are open; the one that has waited longest is closed",
                self.limits.total,
            )
            return self.end_idlest()
        return True

    def end_idlest(self, address: str | None = None) -> bool:
        """End the connection that waits longest, of one address or of all; return whether there was one."""
        for phase in (Phase.SENDING, Phase.IDLE, Phase.NOT_TAKING):
            for connection in self._by_phase[phase]:
                if address in {None, connection.address}:
                    connection.forget()
                    connection.end()
                    return True
        return False


class Acceptor:
    """Accepts the connections of one listening socket.

    It is what uvicorn calls a server: it can be closed, and waited for.

    Args:
        listener: The socket; it listens already.
        connections: Where they are counted.
        serve: Makes the protocol of one connection.
        tls: The context of TLS, or None for plain HTTP.
    """

    def __init__(
        self,
        listener: socket.socket,
        connections: Connections,
        serve: Callable[[Connection], asyncio.Protocol],
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._listener = listener
        self._connections = connections
        self._serve = serve
        self._tls = tls
        self._loop = asyncio.get_running_loop()
        self._beginning: set[asyncio.Task[None]] = set()
        self._pause: asyncio.TimerHandle | None = None
        listener.setblocking(False)
        self._loop.add_reader(listener, self._accept)

    def __repr__(self) -> str:
        return f"<Acceptor of {self._listener!r}, {self._connections!r}>"

    def close(self) -> None:
        """Accept no more."""
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._listener)
        for task in self._beginning:
            task.cancel()

    async def wait_closed(self) -> None:
        """Return at once: nothing is left behind by `close`."""

    def _accept(self) -> None:
        for _ in range(ACCEPTED_AT_ONCE):
            try:
                accepted, peer = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _NO_ROOM:
                    raise
                log.warning(
                    "no connection can be accepted (%s); raise the limit of open files (LimitNOFILE)", error.strerror
                )
                if not self._connections.end_idlest():
                    self._rest()
                return
            self._begin(accepted, _counted_address(accepted, peer))

    def _rest(self) -> None:
        self._loop.remove_reader(self._listener)
        self._pause = self._loop.call_later(PAUSE_S, self._loop.add_reader, self._listener, self._accept)

    def _begin(self, accepted: socket.socket, address: str | None) -> None:
        accepted.setblocking(False)
        if not self._connections.make_room(address):
            _refuse(accepted, is_plain=self._tls is None)
            return
        connection = Connection(self._connections, address)
        task = self._loop.create_task(self._greet(accepted, connection), name="allocator-connection")
        connection.end = task.cancel
        self._beginning.add(task)
        task.add_done_callback(self._beginning.discard)

    async def _greet(self, accepted: socket.socket, connection: Connection) -> None:
        """Hand a connection to its protocol, after the handshake of TLS where there is one."""
        timeout_s = None if self._tls is None else HEAD_S
        is_served = False
        try:
            await self._loop.connect_accepted_socket(
                lambda: self._serve(connection), accepted, ssl=self._tls, ssl_handshake_timeout=timeout_s
            )
            is_served = True
        except OSError:  # the client left, does not speak TLS or takes too long: its own affair
            pass
        finally:
            if not is_served:
                connection.forget()
                accepted.close()


def _counted_address(accepted: socket.socket, peer: Any) -> str | None:  # noqa: ANN401  # as sockets have it
    """Return what connections of a peer are counted under."""
    if accepted.family == socket.AF_UNIX:
        return None
    return counted_address(peer[0])


def counted_address(address: str) -> str:
    """Return an address as it is counted: an IPv6 network of 64 bits is one caller, for it has any number of them."""
    if ":" not in address:
        return address
    try:
        found = ipaddress.IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ipaddress.IPv6Network((found, 64), strict=False))


def _refuse(accepted: socket.socket, *, is_plain: bool) -> None:
    with accepted:
        if is_plain:
            try:
                accepted.send(_refusal())
            except OSError:
                return  # it has left
