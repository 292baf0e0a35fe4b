"""One health check of a worker, without blocking: it accepts a connection, or answers `GET /health` with 2xx or 3xx.

It uses a plain socket, because an HTTP client library needs more memory than the rest of a supervisor (see
docs/decisions/0010). Only the status line is read.
"""

from __future__ import annotations

import os
import re
import select
import socket

from allocator.model.values import Value

_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([0-9]{3})[ \r]")
_LONGEST_STATUS_LINE = 16


class Answer(Value):
    """The result of a health check.

    Attributes:
        healthy: Whether the worker answered as it should.
        why: What was wrong, as text; empty when nothing was.
    """

    healthy: bool
    why: str = ""


class Probe:
    """A health check that is under way.

    Args:
        address: Where the worker listens.
        port: Its port.
        path: The path to request; None when a connection is enough.
        method: `GET` or `POST`.
        deadline: The time after which an answer is too late, by the caller's clock.
    """

    def __init__(self, address: str, port: int, path: str | None, deadline: float, *, method: str = "GET") -> None:
        self.deadline = deadline
        self.path = path
        self._request = b"" if path is None else _request(method, path, address, port)
        self._received = b""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_STREAM | getattr(socket, "SOCK_NONBLOCK", 0))
        self._socket.setblocking(False)
        self._refused = self._socket.connect_ex((address, port))
        self._connected = False

    def __repr__(self) -> str:
        return f"<Probe {self.path or 'connect'}, {'sent' if self._connected and not self._request else 'sending'}>"

    @property
    def descriptor(self) -> int:
        """The descriptor to poll."""
        return self._socket.fileno()

    @property
    def events(self) -> int:
        """Which poll(2) events to wait for."""
        return select.POLLIN if self._connected and not self._request else select.POLLOUT

    def advance(self) -> Answer | None:
        """Do the next step without blocking; return the answer when there is one."""
        try:
            return self._advance()
        except BlockingIOError:
            return None
        except OSError as error:
            return Answer(False, f"{self._target()}: {error.strerror or error}")

    def expired(self) -> Answer:
        """Return the answer for a check whose deadline has passed."""
        return Answer(False, f"{self._target()}: no answer in time")

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def _advance(self) -> Answer | None:
        if not self._connected:
            error = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error:
                raise OSError(error, os.strerror(error))
            self._connected = True
            if self.path is None:
                return Answer(True)
        if self._request:
            self._request = self._request[self._socket.send(self._request) :]
            return None
        chunk = self._socket.recv(512)
        self._received += chunk
        status = _STATUS_LINE.match(self._received)
        if status:
            code = int(status[1])
            return Answer(True) if 200 <= code < 400 else Answer(False, f"{self._target()}: answered {code}")
        if not chunk or len(self._received) >= _LONGEST_STATUS_LINE:
            return Answer(False, f"{self._target()}: the answer is not HTTP")
        return None

    def _target(self) -> str:
        return "a connection" if self.path is None else self.path


def _request(method: str, path: str, address: str, port: int) -> bytes:
    host = f"[{address}]" if ":" in address else address
    length = "Content-Length: 0\r\n" if method == "POST" else ""
    lines = (
        f"{method} {path} HTTP/1.1\r\nHost: {host}:{port}\r\nUser-Agent: portlease\r\n{length}Connection: close\r\n\r\n"
    )
    return lines.encode("ascii")
