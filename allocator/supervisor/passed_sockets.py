"""The socket that a supervisor binds for its worker and passes to it, so that nothing comes between claim and bind."""

from __future__ import annotations

import errno
import socket

BACKLOG = 511
"""As Node's; the kernel caps it at `net.core.somaxconn`."""

_NO_IPV6 = frozenset({errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL})


def listening_socket(port: int) -> socket.socket | None:
    """Return a socket that listens on `port` of all addresses, IPv4 and IPv6, or None when somebody else has it.

    Raises:
        OSError: When the kernel refuses for another reason.
    """
    for family, address in ((socket.AF_INET6, "::"), (socket.AF_INET, "0.0.0.0")):  # noqa: S104  # where workers bind
        try:
            return _listen(family, address, port)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return None
            if error.errno not in _NO_IPV6 or family == socket.AF_INET:
                raise
    return None


def _listen(family: int, address: str, port: int) -> socket.socket:
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((address, port))
        listening.listen(BACKLOG)
    except BaseException:
        listening.close()
        raise
    return listening
