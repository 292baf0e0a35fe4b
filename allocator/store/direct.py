"""Blocking connections to one server, with a pool for threads; and what they share with those of asyncio.

Shared are the options of a connection, the commands that begin it, the parser and the errors: an error reply is a
`ReplyError`, an answer that is not RESP a `ForeignReplyError`, everything else an `OSError`.

The rule of this file: a connection serves one call at a time, and is never used again when a call failed before its
answer was read, when the server has closed it, when it has data that nobody read, or when the parent of this process
opened it.
"""

from __future__ import annotations

import os
import select
import socket
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from hiredis import Reader, pack_command

from allocator.model.values import Value

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from allocator.model.redis_urls import StoreAddress

CommandPart = str | int | float | bytes
Command = tuple[CommandPart, ...]

CLIENT_NAME = "portlease"
"""The name in `CLIENT LIST`, unless the URL gives another."""

READ_SIZE = 65_536
"""Bytes that are read at once: enough for every answer but the longest listings."""

KEEPALIVE = (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3))
"""When the kernel asks whether the other end of an idle connection is still there, in seconds, and how often."""

INCOMPLETE: Final = object()
"""The parser returns this while an answer is incomplete."""

CLOSED = "the server closed the connection"
SILENT = "it took the connection and then sent no answer"
UNFINISHED = "its answer did not end in time"

SHORTEST_S = 0.001


class ReplyError(Exception):
    """An error that the server answered.

    Attributes:
        code: Its code, `NOSCRIPT` or `ERR`; empty where it is not a code.
    """

    def __init__(self, text: str) -> None:
        code = text.partition(" ")[0]
        self.code = code if code.isupper() else ""
        super().__init__(text.removeprefix("ERR "))

    def __reduce__(self) -> tuple[type[ReplyError], tuple[str]]:
        return type(self), (f"ERR {self}" if self.code == "ERR" else str(self),)


class ForeignReplyError(Exception):
    """An answer that is not RESP, as a web server gives."""


class ConnectionOptions(Value):
    """How to connect to one server.

    Attributes:
        address: Its address, user and password.
        timeout_s: The limit in seconds for connecting, for sending a command, and for its answer.
    """

    address: StoreAddress
    timeout_s: float

    @property
    def greeting(self) -> list[Command]:
        """The commands that begin a connection; they are sent together."""
        address = self.address
        commands: list[Command] = []
        if address.username:
            commands.append(("AUTH", address.username, address.password or ""))
        elif address.password:
            commands.append(("AUTH", address.password))
        commands.append(("CLIENT", "SETNAME", address.client_name or CLIENT_NAME))
        if address.database:
            commands.append(("SELECT", address.database))
        return commands

    @property
    def server_name(self) -> str | None:
        """The name that the server's certificate has to have, or None without TLS."""
        return self.address.nodes[0][0] if self.address.tls else None


def new_reader() -> Reader:
    """Return a parser of answers; an error reply is a value, because the connection stays usable."""
    return Reader(protocolError=ForeignReplyError, replyError=ReplyError, notEnoughData=INCOMPLETE)


def packed(commands: Iterable[Command]) -> bytes:
    """Return commands as they are sent.

    Raises:
        UnicodeEncodeError: When an argument is not text that UTF-8 can have.
    """
    return b"".join([pack_command(parts) for parts in commands])  # type: ignore[arg-type]  # its stub means tuples of one


def set_tcp_options(opened: socket.socket) -> None:
    """Send commands at once, and let the kernel find an idle connection whose other end is gone."""
    if opened.family == socket.AF_UNIX:
        return
    opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE:
        if number := getattr(socket, name, None):
            opened.setsockopt(socket.IPPROTO_TCP, number, value)


def first_error(replies: Iterable[Any]) -> ReplyError | None:
    """Return the first error among some replies, or None."""
    return next((reply for reply in replies if type(reply) is ReplyError), None)


def fields_of(reply: bytes) -> dict[str, str]:
    """Return the fields of a reply to `INFO`."""
    lines = reply.decode("utf-8", "replace").splitlines()
    return {name: value for name, colon, value in (line.partition(":") for line in lines) if colon}


class Connection:
    """One open connection, for one call at a time.

    Args:
        options: How to connect to the server.

    Raises:
        OSError: When the server cannot be reached in time, TimeoutError and `ssl.SSLError` among them.
        ReplyError: When it refuses the user, the name or the database.
        ForeignReplyError: When it is not a Redis.
    """

    __slots__ = ("__weakref__", "_buffer", "_poll", "_reader", "_socket", "_timeout_s", "_tls")

    def __init__(self, options: ConnectionOptions) -> None:
        self._timeout_s = options.timeout_s
        self._tls = options.address.tls
        self._reader = new_reader()
        self._buffer = bytearray(READ_SIZE)
        self._socket = open_socket(options)
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)
        try:
            greeting = options.greeting
            error = first_error(self.exchange(packed(greeting), len(greeting)))
        except BaseException:
            self.close()
            raise
        if error is not None:
            self.close()
            raise error

    def __del__(self) -> None:
        if hasattr(self, "_socket"):
            self.close()

    def close(self) -> None:
        """Close it and send nothing, because a forked process may share it."""
        self._socket.close()

    def ask(self, command: bytes) -> Any:  # noqa: ANN401  # a reply is whatever the server answers
        """Send a packed command and return its reply, an error reply too.

        Raises:
            OSError: When it was not answered in time; the connection is of no use then.
            ForeignReplyError: When the answer is not RESP.
        """
        began = monotonic()
        try:
            self._socket.sendall(command)
            size = self._socket.recv_into(self._buffer)
        except TimeoutError:
            raise TimeoutError(SILENT) from None
        if not size:
            raise ConnectionResetError(CLOSED)
        self._reader.feed(self._buffer, 0, size)  # type: ignore[arg-type]  # its stub knows no bytearray
        reply = self._reader.gets(False)
        return reply if reply is not INCOMPLETE else self._rest_of(began + self._timeout_s)

    def exchange(self, commands: bytes, count: int) -> list[Any]:
        """Send packed commands together and return the reply to each, error replies too; raises as `ask`."""
        replies = [self.ask(commands)]
        deadline = monotonic() + self._timeout_s
        while len(replies) < count:
            reply = self._reader.gets(False)
            replies.append(reply if reply is not INCOMPLETE else self._rest_of(deadline))
        return replies

    def _rest_of(self, deadline: float) -> Any:  # noqa: ANN401  # as above
        """Read until the answer is complete, at most until the deadline."""
        while (left_s := deadline - monotonic()) > 0:
            self._socket.settimeout(left_s)
            try:
                size = self._socket.recv_into(self._buffer)
            except TimeoutError:
                break
            if not size:
                raise ConnectionResetError(CLOSED)
            self._reader.feed(self._buffer, 0, size)  # type: ignore[arg-type]  # as above
            reply = self._reader.gets(False)
            if reply is not INCOMPLETE:
                self._socket.settimeout(self._timeout_s)
                return reply
        raise TimeoutError(UNFINISHED)

    def is_quiet(self) -> bool:
        """Return whether it is open and has nothing to read, as it has to be before a call."""
        if self._reader.has_data():
            return False
        try:
            if self._tls:
                return self._has_no_text()
            return not self._poll.poll(0)
        except (OSError, ValueError):
            return False

    def _has_no_text(self) -> bool:
        """Return whether TLS has nothing to read but messages of its own."""
        import ssl

        if not self._poll.poll(0) and not self._socket.pending():  # type: ignore[attr-defined]  # an SSLSocket
            return True
        self._socket.settimeout(0)
        try:
            self._socket.recv(1)
        except ssl.SSLWantReadError:
            self._socket.settimeout(self._timeout_s)
            return True
        return False


class ConnectionPool:
    """The connections to one server, safe for threads: a call takes the one used last, or opens another.

    Args:
        options: How to connect to the server.
    """

    is_cluster = False

    def __init__(self, options: ConnectionOptions) -> None:
        self._options = options
        self._idle: list[Connection] = []
        self._pid = os.getpid()

    def __repr__(self) -> str:
        return f"<ConnectionPool of {self._options.address.shown}, {len(self._idle)} idle>"

    def execute(self, *parts: CommandPart) -> Any:  # noqa: ANN401  # a reply is whatever the server answers
        """Send a command once and return its reply.

        Raises:
            ReplyError: When the reply is an error.
            OSError: When there was none in time.
            ForeignReplyError: When the server is not a Redis.
        """
        reply = self._call(pack_command(parts), 1)  # type: ignore[arg-type]  # its stub means tuples of one
        if type(reply) is ReplyError:
            raise reply
        return reply

    def execute_together(self, _key: str, commands: Sequence[Command]) -> list[Any]:
        """Send commands together over one connection; return the reply to each, with error replies as values."""
        replies = self._call(packed(commands), len(commands))
        return replies if len(commands) > 1 else [replies]

    def _call(self, commands: bytes, count: int) -> Any:  # noqa: ANN401  # as above
        """Return the reply to one command, or the list of those to several."""
        connection = self._take()
        home = self._idle
        try:
            found = connection.ask(commands) if count == 1 else connection.exchange(commands, count)
        except OSError as error:
            connection.close()
            raise _meant(error) from None
        except BaseException:
            connection.close()
            raise
        if home is self._idle:
            home.append(connection)
        else:
            connection.close()
        return found

    def key_names(self, pattern: str) -> Iterator[bytes]:
        """Return the names of the keys that match, some perhaps twice."""
        cursor: Any = b"0"
        while True:
            cursor, names = self.execute("SCAN", cursor, "MATCH", pattern, "COUNT", 1_000)
            yield from names
            if cursor == b"0":
                return

    def close(self) -> None:
        """Close the connections; one in use is closed when its call ends."""
        idle, self._idle = self._idle, []
        while idle:
            idle.pop().close()

    def _take(self) -> Connection:
        """Return a connection that is fit for a call."""
        if self._pid != os.getpid():
            self._forget_inherited()
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return Connection(self._options)
            if connection.is_quiet():
                return connection
            connection.close()

    def _forget_inherited(self) -> None:
        """Close this process's copies of connections that its parent goes on using."""
        inherited, self._idle, self._pid = self._idle, [], os.getpid()
        for connection in inherited:
            connection.close()


def open_socket(options: ConnectionOptions) -> socket.socket:
    """Return a connected socket, with TLS where the address asks for it; its calls end within the timeout.

    Raises:
        OSError: When the server cannot be reached in time; TimeoutError and `ssl.SSLError` among them.
    """
    deadline = monotonic() + options.timeout_s
    context = None
    if options.address.tls:
        from allocator.store import tls

        context = tls.context_of(options.address)
    try:
        opened = _unix_socket(options) if options.address.path else _tcp_socket(options, deadline)
    except TimeoutError:
        raise TimeoutError("it did not accept the connection") from None
    try:
        set_tcp_options(opened)
        if context is not None:
            opened.settimeout(max(SHORTEST_S, deadline - monotonic()))
            opened = tls.wrapped(opened, context, options.server_name)
        opened.settimeout(options.timeout_s)
    except BaseException:
        opened.close()
        raise
    return opened


def _unix_socket(options: ConnectionOptions) -> socket.socket:
    opened = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        opened.settimeout(options.timeout_s)
        opened.connect(str(options.address.path))
    except BaseException:
        opened.close()
        raise
    return opened


def _tcp_socket(options: ConnectionOptions, deadline: float) -> socket.socket:
    """Try the addresses of a name in their order; each has its share of the time that is left."""
    host, port = options.address.nodes[0]
    found = socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM)
    failure: OSError = ConnectionError(f"{host} has no address")
    for number, (family, kind, protocol, _, where) in enumerate(found):
        opened = socket.socket(family, kind, protocol)
        try:
            opened.settimeout(max(SHORTEST_S, (deadline - monotonic()) / (len(found) - number)))
            opened.connect(where)
        except OSError as error:
            opened.close()
            failure = error
        except BaseException:
            opened.close()
            raise
        else:
            return opened
    raise failure


def _meant(error: OSError) -> OSError:
    """Return the error of a call; the end of TLS without a closing message counts as a closed connection."""
    if type(error).__name__ in {"SSLEOFError", "SSLZeroReturnError"}:
        return ConnectionResetError(CLOSED)
    return error
