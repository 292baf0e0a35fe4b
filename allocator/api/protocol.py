"""Serves one connection: uvicorn's protocol, with a limit of time for each thing that a client can be slow at."""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from allocator.api.connections import HEAD_S, USER_EXTENSION, Connection, Phase
from allocator.kernel.socket_tables import user_of_connection

BODY_S = 20.0
"""How long the body of a request may take: 64 KiB at 3 KiB a second."""
TAKE_S = 30.0
"""How long a client may take nothing of its answer."""
_CREDENTIALS = struct.Struct("=iII")  # struct ucred: pid, uid, gid

log = logging.getLogger("allocator.api")


class BoundedProtocol(H11Protocol):
    """uvicorn's protocol with a limit of time for each thing that a client can be slow at."""

    def __init__(self, connection: Connection, **parts: Any) -> None:  # noqa: ANN401  # uvicorn's
        super().__init__(**parts)
        self._connection = connection
        self._limit: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's does
        """Begin to wait for the head of a request."""
        super().connection_made(transport)
        self._application, self.app = self.app, self._call
        self._connection.end = self._abort
        self._set_limit(HEAD_S)

    async def _call(self, scope: Any, receive: Any, send: Any) -> None:  # noqa: ANN401  # ASGI's
        scope["extensions"] = {USER_EXTENSION: self._user}
        await self._application(scope, receive, send)

    def _user(self) -> int | None:
        """Return the number of the user at the other end, where it is on this machine."""
        ours = self.transport.get_extra_info("socket")
        if ours is None:
            return None
        if ours.family == socket.AF_UNIX:
            _, uid, _ = _CREDENTIALS.unpack(ours.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
            return int(uid)
        try:
            near, far = ours.getpeername()[:2], ours.getsockname()[:2]
        except OSError:  # it has left
            return None
        return user_of_connection(near, far)

    def connection_lost(self, exc: Exception | None) -> None:
        """Count the connection no more."""
        self._clear_limit()
        self._connection.forget()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what came; a first piece of a request starts the time that its head may take."""
        was_idle = self._connection.phase is Phase.IDLE
        super().data_received(data)
        if was_idle and self._connection.phase is Phase.IDLE and not self.transport.is_closing():
            self._connection.become(Phase.SENDING)
            self._set_limit(HEAD_S)

    def handle_events(self) -> None:
        """Handle what came, then see how far the request is."""
        before = self.cycle
        super().handle_events()
        if self.transport.is_closing() or self.cycle is None or self.cycle.response_complete:
            return
        if self.cycle.more_body and self.cycle is before:
            return  # the time of its body runs already
        if self._connection.phase is not Phase.NOT_TAKING:
            self._enter()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        if self.transport.is_closing():  # it closes when the client has taken all of the answer
            self._connection.become(Phase.NOT_TAKING)
            self._set_limit(TAKE_S)
        elif self._connection.phase is not Phase.NOT_TAKING:
            self._enter()
        super().on_response_complete()

    def pause_writing(self) -> None:
        """Bound the time for which a client reads nothing of its answer."""
        super().pause_writing()
        self._connection.become(Phase.NOT_TAKING)
        self._set_limit(TAKE_S)

    def resume_writing(self) -> None:
        """Go on: the client takes its answer."""
        super().resume_writing()
        if not self.transport.is_closing():
            self._enter()

    def timeout_keep_alive_handler(self) -> None:
        """Close a connection that waited long enough, and do not wait for what its client has not taken."""
        super().timeout_keep_alive_handler()
        self._set_limit(TAKE_S)

    def shutdown(self) -> None:
        """End the connection, after the answer that it is being given; half of a request gets none."""
        if self._connection.phase is Phase.SENDING:
            self._abort()
            return
        try:
            super().shutdown()
        except h11.LocalProtocolError:  # it is beyond a last message
            self._abort()

    def _enter(self) -> None:
        """Set phase and limit by how far the request and its answer are."""
        self._clear_limit()
        if self.cycle is None or self.cycle.response_complete:
            self._connection.become(Phase.IDLE)
        elif self.cycle.more_body:
            self._connection.become(Phase.SENDING)
            self._set_limit(BODY_S)
        else:
            self._connection.become(Phase.ANSWERED)

    def _set_limit(self, seconds: float) -> None:
        self._clear_limit()
        self._limit = self.loop.call_later(seconds, self._run_out)

    def _clear_limit(self) -> None:
        if self._limit is not None:
            self._limit.cancel()
            self._limit = None

    def _run_out(self) -> None:
        if self._connection.phase is Phase.NOT_TAKING:
            log.warning("a client read nothing of its answer for %g s; its connection was closed", TAKE_S)
        elif self.cycle is not None or self.conn.trailing_data[0]:  # a browser opens connections that it may never use
            log.warning("a client took too long to send its request; its connection was closed")
        self._abort()

    def _abort(self) -> None:
        self._connection.forget()
        self._clear_limit()
        self.transport.abort()
