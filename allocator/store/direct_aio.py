"""Connections to one server for asyncio, and a pool of them for one event loop; the rule is that of `direct`.

A call costs no timer of its own: each connection has one, which is set anew when it fires while a call waits.
"""

from __future__ import annotations

import asyncio
import os
import select
from typing import TYPE_CHECKING, Any, cast

from hiredis import pack_command

from allocator.store.direct import (
    CLOSED,
    INCOMPLETE,
    SILENT,
    UNFINISHED,
    ReplyError,
    first_error,
    new_reader,
    packed,
    set_tcp_options,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from allocator.store.direct import Command, CommandPart, ConnectionOptions

NEXT_ADDRESS_S = 0.25
"""After which time of silence the next address of a name is tried as well, as RFC 8305 has it."""


class AsyncConnection(asyncio.Protocol):
    """One open connection, for one call at a time; `open` makes one.

    Args:
        options: The way to the server.
        loop: The event loop that it belongs to.
    """

    def __init__(self, options: ConnectionOptions, loop: asyncio.AbstractEventLoop) -> None:
        self._timeout_s = options.timeout_s
        self._loop = loop
        self._reader = new_reader()
        self._transport: asyncio.Transport | None = None
        self._poll: select.poll | None = None
        self._answered: asyncio.Future[None] | None = None
        self._replies: list[Any] = []
        self._expected = 0
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None

    @classmethod
    async def open(cls, options: ConnectionOptions) -> AsyncConnection:
        """Return a new connection.

        Raises:
            OSError: When the server cannot be reached in time, TimeoutError and `ssl.SSLError` among them.
            ReplyError: When it refuses the user, the name or the database.
            ForeignReplyError: When it is not a Redis.
        """
        loop = asyncio.get_running_loop()
        connection = cls(options, loop)
        try:
            async with asyncio.timeout(options.timeout_s):
                await connection._connect(options)
        except TimeoutError:
            connection.close()
            raise TimeoutError("it did not accept the connection") from None
        except BaseException:
            connection.close()
            raise
        try:
            greeting = options.greeting
            error = first_error(await connection.exchange(packed(greeting), len(greeting)))
        except BaseException:
            connection.close()
            raise
        if error is not None:
            connection.close()
            raise error
        return connection

    async def _connect(self, options: ConnectionOptions) -> None:
        context = None
        if options.address.tls:
            from allocator.store import tls

            context = tls.context_of(options.address)
        if options.address.path:
            await self._loop.create_unix_connection(lambda: self, options.address.path)
        else:
            host, port = options.address.nodes[0]
            eyeballs: dict[str, Any] = {"happy_eyeballs_delay": NEXT_ADDRESS_S} if _is_asyncios(self._loop) else {}
            await self._loop.create_connection(
                lambda: self, host, port, ssl=context, server_hostname=options.server_name, **eyeballs
            )
        opened = cast("asyncio.Transport", self._transport).get_extra_info("socket")
        set_tcp_options(opened)
        if context is None:
            self._poll = select.poll()
            self._poll.register(opened, select.POLLIN)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport; called by the event loop."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Take what arrived; called by the event loop."""
        if self._answered is None or self._answered.done():  # nobody asked
            self.close()
            return
        try:
            self._reader.feed(data)
            while (reply := self._reader.gets(False)) is not INCOMPLETE:
                self._replies.append(reply)
        except Exception as error:  # noqa: BLE001  # whoever asked is sent it
            self._answered.set_exception(error)
            self.close()
            return
        if len(self._replies) >= self._expected:
            self._answered.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """End the call that waits; called by the event loop."""
        self.close()
        if self._answered is not None and not self._answered.done():
            lost = ConnectionResetError(CLOSED)
            lost.__cause__ = exc
            self._answered.set_exception(lost)

    def close(self) -> None:
        """Close it at once."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._transport is not None:
            self._transport.abort()
            self._transport = None

    async def ask(self, command: bytes) -> Any:  # noqa: ANN401  # a reply is whatever the server answers
        """Send a packed command and return its reply, an error reply too; raises as `Connection.ask`."""
        return (await self.exchange(command, 1))[0]

    async def exchange(self, commands: bytes, count: int) -> list[Any]:
        """Send packed commands together and return the reply to each, error replies too; raises as `ask`."""
        if self._transport is None:
            raise ConnectionResetError(CLOSED)
        self._answered = self._loop.create_future()
        self._replies, self._expected = [], count
        self._due = self._loop.time() + self._timeout_s
        if self._timer is None:
            self._timer = self._loop.call_at(self._due, self._end_at_deadline)
        self._transport.write(commands)
        try:
            await self._answered
        finally:
            self._answered = None
        return self._replies

    def _end_at_deadline(self) -> None:
        self._timer = None
        if self._answered is None or self._answered.done():
            return
        if self._due > self._loop.time():
            self._timer = self._loop.call_at(self._due, self._end_at_deadline)
            return
        began = bool(self._replies) or self._reader.has_data()
        self._answered.set_exception(TimeoutError(UNFINISHED if began else SILENT))
        self.close()

    def is_quiet(self) -> bool:
        """Return whether it is open and has nothing to read, as it has to be before a call."""
        if self._transport is None or len(self._replies) != self._expected or self._reader.has_data():
            return False
        try:
            return self._poll is None or not self._poll.poll(0)
        except (OSError, ValueError):
            return False


class AsyncConnectionPool:
    """The connections of one event loop to one server. A call takes the one last used, or opens one when all are.

    Args:
        options: The way to the server.
    """

    is_cluster = False

    def __init__(self, options: ConnectionOptions) -> None:
        self._options = options
        self._idle: list[AsyncConnection] = []
        self._home: tuple[int, asyncio.AbstractEventLoop | None] = (os.getpid(), None)
        self._foreign: list[AsyncConnection] = []

    def __repr__(self) -> str:
        return f"<AsyncConnectionPool of {self._options.address.shown}, {len(self._idle)} idle>"

    async def execute(self, *parts: CommandPart) -> Any:  # noqa: ANN401  # a reply is whatever the server answers
        """Send a command once and return its reply; see `ConnectionPool.execute`."""
        command = pack_command(parts)  # type: ignore[arg-type]  # its stub means tuples of one
        reply = (await self._exchange(command, 1))[0]
        if type(reply) is ReplyError:
            raise reply
        return reply

    async def execute_together(self, _key: str, commands: Sequence[Command]) -> list[Any]:
        """Send commands together over one connection; return the reply to each, with error replies as values."""
        return await self._exchange(packed(commands), len(commands))

    async def _exchange(self, commands: bytes, count: int) -> list[Any]:
        connection = self._idle_one() or await AsyncConnection.open(self._options)
        home = self._idle
        try:
            replies = await connection.exchange(commands, count)
        except BaseException:
            connection.close()
            raise
        if home is self._idle:
            home.append(connection)
        else:
            connection.close()
        return replies

    async def key_names(self, pattern: str) -> AsyncIterator[bytes]:
        """Return the names of the keys that match, some perhaps twice."""
        cursor: Any = b"0"
        while True:
            cursor, names = await self.execute("SCAN", cursor, "MATCH", pattern, "COUNT", 1_000)
            for name in names:
                yield name
            if cursor == b"0":
                return

    async def close(self) -> None:
        """Close the connections; one in use is closed when its call ends, a parent process's by that one."""
        if self._home[0] != os.getpid():
            return
        self._begin_here()
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _begin_here(self) -> None:
        """Leave alone what belongs to a parent process or to an ended event loop: it cannot be closed from here."""
        here = (os.getpid(), asyncio.get_running_loop())
        if self._home != here:
            self._foreign, self._idle, self._home = self._idle, [], here

    def _idle_one(self) -> AsyncConnection | None:
        """Return a connection that is fit for a call, or None."""
        self._begin_here()
        while self._idle:
            connection = self._idle.pop()
            if connection.is_quiet():
                return connection
            connection.close()
        return None


def _is_asyncios(loop: asyncio.AbstractEventLoop) -> bool:
    """Return whether a loop is one of the standard library's, which knows about happy eyeballs; others need not."""
    return isinstance(loop, asyncio.BaseEventLoop)
