"""Where the embedded server's socket is, and whether somebody answers on it: 0.2 ms, with light imports only.

The rule of this file: a socket is only trusted in a directory that belongs to this user and that nobody else can enter.
"""

from __future__ import annotations

import os
import re
import socket
import stat
import sys
import time
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Self

from allocator.model.encodings import sha256
from allocator.model.errors import ConfigurationError, StoreUnavailableError
from allocator.model.values import Value

if TYPE_CHECKING:
    from types import TracebackType

MAX_SOCKET_PATH = 107 if sys.platform == "linux" else 103
"""Longest path of a Unix socket in bytes: `sun_path` less its final zero byte."""

SHORT_SOCKET_ROOT = Path("/tmp")  # noqa: S108  # a private, ownership-checked directory is made inside
"""Where the socket goes when the state directory's path is too long for one. Not `$XDG_RUNTIME_DIR` and not
`$TMPDIR`: commands that share a server need not share an environment, and logging out removes the former."""


class Reach(Enum):
    """What became of asking the server whether it is there."""

    READY = "ready"
    BUSY = "busy"
    ABSENT = "absent"


class ServerFiles(Value):
    """Where an embedded server is.

    Attributes:
        data_dir: Where the data, the locks and the log are.
        socket: The Unix socket.
        log: The server's log.
    """

    data_dir: Path
    socket: Path
    log: Path


class Conversation:
    """One connection to the server, for a question or two.

    Args:
        path: The server's socket.
        deadline: When to give up, in seconds of the monotonic clock.

    Raises:
        TimeoutError: The deadline has passed.
        OSError: Nobody is there, or the connection broke.
    """

    def __init__(self, path: Path, deadline: float) -> None:
        self._deadline = deadline
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._arm()
            self._socket.connect(str(path))
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def ask(self, command: bytes) -> bytes:
        """Send an inline command; return its reply without length and line ends, empty when the server hung up."""
        self._arm()
        self._socket.sendall(command + b"\r\n")
        got = b""
        while b"\r\n" not in got:
            more = self._receive()
            if not more:
                return b""
            got += more
        first, _, rest = got.partition(b"\r\n")
        if not re.fullmatch(rb"\$[0-9]{1,8}", first):
            return first
        size = int(first[1:])
        while len(rest) < size:
            more = self._receive()
            if not more:
                return b""
            rest += more
        return rest[:size]

    def peer_pid(self) -> int | None:
        """Return the process that listens, as the kernel knows it; None where it does not tell."""
        if sys.platform != "linux":
            return None
        credentials = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        return int.from_bytes(credentials[:4], sys.byteorder) or None

    def _receive(self) -> bytes:
        self._arm()
        try:
            return self._socket.recv(65_536)
        except ConnectionResetError:
            return b""

    def _arm(self) -> None:
        left_s = self._deadline - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        self._socket.settimeout(left_s)


def ask_whether_ready(path: Path, log: Path, deadline: float) -> Reach:
    """Ask the server on a socket whether it is there.

    Args:
        path: The socket.
        log: The server's log, for the sentence of an error.
        deadline: When to give up, in seconds of the monotonic clock.

    Raises:
        ConfigurationError: It cannot write its data.
        StoreUnavailableError: It took the connection and sent nothing, or something that is not an answer.
    """
    if not is_private(path.parent):
        return Reach.ABSENT
    try:
        server = Conversation(path, deadline)
    except (
        TimeoutError,
        BlockingIOError,
    ):  # no time left, for which the caller has a better message, or a full backlog
        return Reach.BUSY
    except OSError:  # no socket, or nobody behind it
        return Reach.ABSENT
    try:
        with server:
            reply = server.ask(b"PING")
    except TimeoutError:
        raise silent(path, log) from None
    except OSError:  # gone while we asked
        return Reach.ABSENT
    return _reach_of(reply, path, log)


def _reach_of(reply: bytes, path: Path, log: Path) -> Reach:
    """Return the condition of a server by its answer to PING."""
    if reply == b"+PONG":
        return Reach.READY
    if not reply:  # it hung up: about to end
        return Reach.ABSENT
    if reply.startswith((b"-LOADING", b"-BUSY")):
        return Reach.BUSY
    if reply.startswith(b"-MISCONF"):
        raise ConfigurationError(
            f"the embedded server cannot write its data to {log.parent} ({text_of(reply)}); free some space or fix "
            "that disk: the server goes on by itself"
        )
    raise StoreUnavailableError(f"the embedded server on {path} refused to answer ({text_of(reply)}); see {log}")


def silent(path: Path, log: Path) -> StoreUnavailableError:
    """Return the error for a server that took a connection and then sent nothing."""
    return StoreUnavailableError(
        f"the embedded server on {path} took the connection and did not answer in time; see {log}"
    )


def text_of(reply: bytes) -> str:
    """Return an error reply as text."""
    return reply.decode("utf-8", "replace").lstrip("-").rstrip(".")


def is_private(directory: Path) -> bool:
    """Return whether this is a directory of ours that nobody else can enter, so that what is in it is ours too."""
    try:
        found = os.lstat(directory)
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not stat.S_IMODE(found.st_mode) & 0o077


def socket_path(data_dir: Path) -> Path:
    """Return where the socket is: beside the data, or in a short directory when that path is too long for one."""
    beside = data_dir / "server.sock"
    encoded = os.fsencode(beside)
    if len(encoded) <= MAX_SOCKET_PATH and _is_utf8(encoded):
        return beside
    return SHORT_SOCKET_ROOT / f"allocator-{os.geteuid()}-{sha256(encoded)[:16]}" / "server.sock"


def socket_url(path: Path) -> str:
    """Return the URL of a socket, quoted where a URL needs it."""
    text = str(path)
    if not text.isascii() or not text.replace("/", "").replace("-", "").replace(".", "").isalnum():
        from urllib.parse import quote  # 5 ms that only odd paths need

        text = quote(text)
    return f"unix://{text}"


def _is_utf8(encoded: bytes) -> bool:
    try:
        encoded.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
