"""Which programs of this host listen, and the ranges that its kernel takes ports from. Nothing is kept open here."""

from __future__ import annotations

import contextlib
import os
import pwd
import socket
from typing import TYPE_CHECKING

from allocator.kernel.processes import all_pids, command_name
from allocator.kernel.socket_tables import PROC, ListeningSocket, listening_sockets
from allocator.model.values import Value

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


class Listener(Value):
    """A listening socket and its process.

    Attributes:
        port: 1-65535.
        address: The address that it is bound to, as text; `0.0.0.0` or `::` for any.
        pid: The process, or None when this user may not see it.
        command: The process's name, or None.
        user: The user who made the socket, by name or number, or None.
    """

    port: int
    address: str
    pid: int | None
    command: str | None
    user: str | None


def listeners(first: int = 1, last: int = 65_535) -> list[Listener]:
    """Return the listening sockets of a range with their processes, by port and address."""
    rows = listening_sockets(first, last)
    owners = _owners({row.inode for row in rows if row.inode}) if rows else {}
    found = {_listener(row, owners) for row in rows}
    return sorted(found, key=lambda one: (one.port, one.address, one.pid or 0))


def listener_of(row: ListeningSocket) -> Listener:
    """Return a listening socket with its process."""
    return _listener(row, _owners({row.inode} if row.inode else set()))


def _listener(row: ListeningSocket, owners: dict[int, int]) -> Listener:
    pid = row.pid if row.pid is not None else owners.get(row.inode or 0)
    command = command_name(pid) if pid is not None else None
    return Listener(row.port, socket.inet_ntop(row.family, row.packed), pid, command, _user(row.uid))


def _user(uid: int | None) -> str | None:
    if uid is None:
        return None
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _owners(inodes: set[int]) -> dict[int, int]:
    """Find the process of each socket; of several that share one, the lowest pid, mostly their common parent."""
    wanted = {f"socket:[{inode}]": inode for inode in inodes}
    found: dict[int, int] = {}
    # The init process comes last: it holds the sockets that it opened for the services behind them.
    for pid in sorted(all_pids(), key=lambda pid: (pid == 1, pid)):
        with contextlib.suppress(OSError), os.scandir(PROC / str(pid) / "fd") as descriptors:
            for descriptor in descriptors:
                with contextlib.suppress(OSError):
                    inode = wanted.get(os.readlink(descriptor))  # noqa: PTH115  # thousands of links, no objects
                    if inode is not None:
                        found.setdefault(inode, pid)
        if len(found) == len(wanted):
            break
    return found


def socket_inodes(pids: Iterable[int]) -> tuple[frozenset[int], bool]:
    """Return the numbers of the sockets that these processes have open, and whether one of them hides its own."""
    found: set[int] = set()
    hidden = False
    for pid in pids:
        try:
            with os.scandir(PROC / str(pid) / "fd") as descriptors:
                for descriptor in descriptors:
                    with contextlib.suppress(OSError):
                        name = os.readlink(descriptor)  # noqa: PTH115  # as above
                        if name.startswith("socket:["):
                            found.add(int(name[8:-1]))
        except PermissionError:
            hidden = True
        except OSError:  # it has ended
            continue
    return frozenset(found), hidden


def port_range_overlap(first: int, last: int, root: Path = PROC) -> tuple[int, int] | None:
    """Return the part of a range from which the kernel takes ports for outgoing connections, or None.

    Ports in `ip_local_reserved_ports` do not count.
    """
    settings = root / "sys/net/ipv4"
    try:
        low, high = map(int, (settings / "ip_local_port_range").read_text().split())
        reserved = _ports_in((settings / "ip_local_reserved_ports").read_text().strip())
    except (OSError, ValueError):
        return None
    taken = [port for port in range(max(first, low), min(last, high) + 1) if port not in reserved]
    return (taken[0], taken[-1]) if taken else None


def reserved_with(first: int, last: int, root: Path = PROC) -> str:
    """Return `ip_local_reserved_ports` as it would be with a range added: what others reserved stays in it."""
    try:
        ports = _ports_in((root / "sys/net/ipv4/ip_local_reserved_ports").read_text().strip())
    except (OSError, ValueError):
        ports = set()
    wanted = ports | set(range(first, last + 1))
    ranges: list[str] = []
    for start in sorted(port for port in wanted if port - 1 not in wanted):
        end = next(port for port in range(start, 65_537) if port + 1 not in wanted)
        ranges.append(f"{start}-{end}" if end > start else f"{start}")
    return ",".join(ranges)


def _ports_in(ranges: str) -> set[int]:
    ports: set[int] = set()
    for part in filter(None, ranges.split(",")):
        start, _, end = part.partition("-")
        ports.update(range(int(start), int(end or start) + 1))
    return ports
