"""The listening TCP sockets of this network namespace, read from the first source that answers.

The sources, best first: a `sock_diag` netlink dump (what `ss` uses: the kernel walks its listening sockets only),
`/proc/net/tcp` and `tcp6` (always there on Linux, but the kernel walks the whole connection table to print them:
7 ms for both on a machine with half a million hash buckets and no connection at all, against 0.03 ms), psutil.
Reading never changes anything and never needs rights. A socket that is bound but does not listen is in none
of the three; only the bind proof (`answers.prove_port`) finds that one.
"""

from __future__ import annotations

import re
import socket
import struct
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

PROC = Path("/proc")


class ListeningSocket(NamedTuple):
    """A row of the kernel's table.

    Attributes:
        port: 1-65535.
        family: `socket.AF_INET` or `socket.AF_INET6`.
        packed: The address that it is bound to, in network order (4 or 16 bytes).
        uid: The user who made it, or None when the source does not tell.
        inode: Its number among `/proc/PID/fd`, or None when the source does not tell.
        pid: The process, where the source tells it (psutil only).
    """

    port: int
    family: int
    packed: bytes
    uid: int | None = None
    inode: int | None = None
    pid: int | None = None


def listening_sockets(first: int = 1, last: int = 65_535) -> list[ListeningSocket]:
    """Return the listening TCP sockets of this network namespace, in no order; empty when no source answers.

    Args:
        first: Lowest port.
        last: Highest port, included.
    """
    try:
        return read_netlink(first, last)
    except OSError:
        # No such protocol (gVisor), no tcp_diag module, or netlink is filtered (systemd's RestrictAddressFamilies).
        pass
    try:
        found = list(read_proc())
    except FileNotFoundError:
        found = list(read_psutil())
    return [row for row in found if first <= row.port <= last]


def listening_ports(first: int = 1, last: int = 65_535) -> frozenset[int]:
    """Return the ports from `first` to `last` that a TCP socket listens on, on any address, IPv4 or IPv6."""
    return frozenset([row.port for row in listening_sockets(first, last)])


# -- netlink --
# Source: linux/netlink.h, linux/sock_diag.h, linux/inet_diag.h. The request is the older of the two that the kernel
# knows (TCPDIAG_GETSOCK): it is answered with both families in one walk, the newer with one of them, and a walk over
# the 16,384 buckets of a common host's table is most of what a claim spends here. What is about other ports the kernel
# leaves out itself, by a filter of two comparisons: to read a row here takes longer than to find it there.

_NETLINK_SOCK_DIAG = 4
_TCPDIAG_GETSOCK = 18
_NLMSG_ERROR = 2
_NLMSG_DONE = 3
_DUMP_REQUEST = 0x301  # NLM_F_REQUEST | NLM_F_ROOT | NLM_F_MATCH
_ONLY_LISTENING = 1 << 10  # TCP_LISTEN
_NETLINK_TIMEOUT = struct.pack(
    "ll", 1, 0
)  # a second: the kernel answers at once; a sandbox that swallows the request must not hang us
_RECEIVE_BYTES = 65_536  # the kernel fills at most 32 KiB of it per answer

_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port id
_ASKED = struct.pack("=B3x48xII", socket.AF_INET, _ONLY_LISTENING, 0)  # family, lengths, an empty socket id, states
_FILTER = struct.Struct("=HHBBHxxHBBHxxH")  # an attribute of two comparisons: code, further if so, further if not; port
_BYTECODE, _AT_LEAST, _AT_MOST = 1, 2, 3  # INET_DIAG_REQ_BYTECODE, INET_DIAG_BC_S_GE, INET_DIAG_BC_S_LE
_COMPARISON = 8
_ELSE = 4  # past the end of the filter: the kernel leaves the socket out
_ROW = struct.Struct("=B3xH2x16s40xII")  # family, state and timers, source port, source address, …, uid, inode


def _request(first: int, last: int) -> bytes:
    filtering = _FILTER.pack(
        _FILTER.size, _BYTECODE,
        _AT_LEAST, _COMPARISON, 2 * _COMPARISON + _ELSE, first,
        _AT_MOST, _COMPARISON, _COMPARISON + _ELSE, last,
    )  # fmt: skip
    size = _HEADER.size + len(_ASKED) + len(filtering)
    return _HEADER.pack(size, _TCPDIAG_GETSOCK, _DUMP_REQUEST, 1, 0) + _ASKED + filtering


def read_netlink(first: int = 1, last: int = 65_535) -> list[ListeningSocket]:
    """Return what the kernel answers to a `sock_diag` dump of listening sockets, IPv4 and IPv6.

    Args:
        first: Lowest port.
        last: Highest port, included.

    Raises:
        OSError: When this kernel or sandbox has no such netlink family, or did not answer within a second.
    """
    rows: list[ListeningSocket] = []
    netlink = socket.SocketType(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG)
    try:
        netlink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _NETLINK_TIMEOUT)  # a call less than `settimeout`
        netlink.sendto(_request(first, last), (0, 0))
        while not _take_rows(netlink.recv(_RECEIVE_BYTES), rows):
            pass
    finally:
        netlink.close()
    return rows


def _take_rows(answer: bytes, rows: list[ListeningSocket]) -> bool:
    """Add the rows of one answer; return whether it was the last."""
    offset = 0
    while offset + _HEADER.size <= len(answer):
        length, kind, _, _, _ = _HEADER.unpack_from(answer, offset)
        if kind == _NLMSG_DONE:
            return True
        if kind == _NLMSG_ERROR or length < _HEADER.size + _ROW.size:
            raise OSError("the kernel refused the sock_diag request")
        family, port, address, uid, inode = _ROW.unpack_from(answer, offset + _HEADER.size)
        width = 4 if family == socket.AF_INET else 16
        rows.append(ListeningSocket(socket.ntohs(port), family, address[:width], uid, inode))
        offset += (length + 3) & ~3
    return False


# -- /proc --

_PROC_ROW = (
    rb"(?m)^ *[0-9]+: ([0-9A-F]{8}|[0-9A-F]{32}):([0-9A-F]{4}) [0-9A-F]+:[0-9A-F]{4} 0A"  # 0A: TCP_LISTEN
    rb" \S+ \S+ \S+ +([0-9]+) +[0-9]+ ([0-9]+) "  # queues, timer, retransmits, uid, timeout, inode
)


def read_proc(root: Path = PROC) -> Iterator[ListeningSocket]:
    """Yield the listening rows of `net/tcp` and `net/tcp6` under `root`; one of the two may be missing.

    A row that is cut or garbled is passed over: the bind proof stands behind this list.

    Raises:
        FileNotFoundError: When neither can be read.
    """
    tables = [_table(root / "net" / name) for name in ("tcp", "tcp6")]
    if all(table is None for table in tables):
        raise FileNotFoundError(f"{root}/net/tcp")
    for table in tables:
        for digits, port, uid, inode in re.findall(_PROC_ROW, table or b""):
            # The kernel prints each 32-bit word of the address as a number in its own byte order.
            packed = b"".join(
                struct.pack("=I", int(digits[start : start + 8], 16)) for start in range(0, len(digits), 8)
            )
            family = socket.AF_INET if len(packed) == 4 else socket.AF_INET6
            yield ListeningSocket(int(port, 16), family, packed, int(uid), int(inode))


_ROW_OF_A_PORT = (
    rb"(?m)^ *[0-9]+: [0-9A-F]+:([0-9A-F]{4}) [0-9A-F]+:[0-9A-F]{4} [0-9A-F]{2}"
    rb" \S+ \S+ \S+ +[0-9]+ +[0-9]+ ([0-9]+) "  # queues, timer, retransmits, uid, timeout, inode
)


def closing_ports(ports: Iterable[int], root: Path = PROC) -> frozenset[int]:
    """Return those ports that only connections without a process have: in TIME_WAIT, or about to be.

    They keep a port from being bound for up to a minute where their server had not set SO_REUSEADDR.
    """
    owned: dict[int, bool] = {}
    for name in ("tcp", "tcp6"):
        for port, inode in re.findall(_ROW_OF_A_PORT, _table(root / "net" / name) or b""):
            number = int(port, 16)
            owned[number] = owned.get(number, False) or inode != b"0"
    return frozenset(port for port in ports if owned.get(port) is False)


def _table(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:  # no IPv6 in this kernel, or a sandbox that hides the file
        return None


_ESTABLISHED = (
    rb"(?m)^ *[0-9]+: ([0-9A-F]{8}|[0-9A-F]{32}):([0-9A-F]{4}) ([0-9A-F]{8}|[0-9A-F]{32}):([0-9A-F]{4}) 01"
    rb" \S+ \S+ \S+ +([0-9]+) "
)


def user_of_connection(near: tuple[str, int], far: tuple[str, int], root: Path = PROC) -> int | None:
    """Return the user who made the socket at the near end of an established connection within this machine.

    Args:
        near: Address and port of that end.
        far: Address and port of the other end.
        root: Where `/proc` is.

    Returns:
        The user's number, or None when the connection is not to be seen here.
    """
    wanted = (_mapped(near[0]), near[1], _mapped(far[0]), far[1])
    for name in ("tcp", "tcp6"):
        for here, port, there, to, uid in re.findall(_ESTABLISHED, _table(root / "net" / name) or b""):
            if (
                int(port, 16) == near[1]
                and (_from_hexadecimal(here), near[1], _from_hexadecimal(there), int(to, 16)) == wanted
            ):
                return int(uid)
    return None


def _mapped(address: str) -> bytes:
    """Return an address as IPv6 has it: a socket of either family may be at each end of a connection."""
    if ":" in address:
        return socket.inet_pton(socket.AF_INET6, address.partition("%")[0])
    return _MAPPED_PREFIX + socket.inet_aton(address)


def _from_hexadecimal(digits: bytes) -> bytes:
    packed = b"".join(struct.pack("=I", int(digits[start : start + 8], 16)) for start in range(0, len(digits), 8))
    return packed if len(packed) == 16 else _MAPPED_PREFIX + packed


_MAPPED_PREFIX = bytes(10) + b"\xff\xff"

# -- psutil --


def read_psutil() -> Iterator[ListeningSocket]:
    """Yield what psutil sees: nothing where it needs rights that this user lacks (macOS), so that the proof decides."""
    import psutil

    try:
        connections = psutil.net_connections("tcp")
    except (psutil.Error, OSError):
        return
    for connection in connections:
        if connection.status == psutil.CONN_LISTEN and connection.laddr:
            address = connection.laddr.ip.partition("%")[0]  # without the zone of fe80::1%en0
            packed = socket.inet_pton(connection.family, address)
            yield ListeningSocket(connection.laddr.port, connection.family, packed, pid=connection.pid)
