"""Runs the application until a signal: ends its event streams first, then its requests, and exits cleanly."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import sys
import threading
from typing import TYPE_CHECKING

import uvicorn
from uvicorn.config import STARTUP_FAILURE

from allocator.api.connections import Acceptor, Connection, ConnectionLimits, Connections
from allocator.api.protocol import BoundedProtocol
from allocator.api.repeats import repeats_counted

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import FrameType

    from fastapi import FastAPI

GRACE_S = 5
"""How long requests may go on after a signal: longer than any but a waiting claim, shorter than supervisors wait."""
END_S = 9.0
"""How long all of the end may take; then the process ends, whatever has not."""
KEEP_ALIVE_S = 30

log = logging.getLogger("allocator.api")


class Server(uvicorn.Server):
    """uvicorn's server with bounded connections, which lets listeners go at its end and ends within its time.

    Args:
        config: uvicorn's settings.
        limits: How many connections there may be.
    """

    def __init__(self, config: uvicorn.Config, limits: ConnectionLimits) -> None:
        super().__init__(config)
        self.connections = Connections(limits)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take SIGINT and SIGTERM for the time of serving; only the main thread of a process can."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end; a second signal ends at once."""
        if not self.should_exit:
            self.deadline = threading.Timer(END_S, _end_hard)
            self.deadline.daemon = True
            self.deadline.start()
        super().handle_exit(sig, frame)
        loop = self._loop
        if loop is not None:
            loop.call_soon_threadsafe(self._close_hubs)

    def _close_hubs(self) -> None:
        application: FastAPI = self.config.app  # type: ignore[assignment]  # it was given as one
        self._closing = asyncio.ensure_future(application.state.hubs.close())

    deadline: threading.Timer | None = None
    _loop: asyncio.AbstractEventLoop | None = None
    _closing: asyncio.Future[None] | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until a signal."""
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the application and accept connections, which uvicorn would do without a bound."""
        await self.lifespan.startup()
        if self.lifespan.should_exit:
            sys.exit(STARTUP_FAILURE)
        tls = self.config.ssl
        self.servers = [Acceptor(one, self.connections, self._protocol, tls) for one in sockets or []]  # type: ignore[misc]  # closed and waited for alike
        self.started = True

    def _protocol(self, connection: Connection) -> BoundedProtocol:
        return BoundedProtocol(
            connection, config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )


def _end_hard() -> None:
    log.error("the server has not ended %g s after its signal; the process ends now", END_S)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(1)


def run_server(application: FastAPI, *listeners: socket.socket, tls: tuple[Path, Path] | None = None) -> None:
    """Serve an application on listening sockets until SIGINT or SIGTERM.

    Args:
        application: What `create_app` made.
        *listeners: Sockets that listen already; they are closed at the end.
        tls: Certificate chain and key, or None for plain HTTP.
    """
    settings = uvicorn.Config(
        application,
        log_config=None,
        access_log=False,
        http="h11",
        ws="none",
        server_header=False,
        timeout_graceful_shutdown=GRACE_S,
        timeout_keep_alive=KEEP_ALIVE_S,
        backlog=2_048,
        ssl_certfile=None if tls is None else str(tls[0]),
        ssl_keyfile=None if tls is None else str(tls[1]),
    )
    for listener in listeners:
        if listener.family not in {socket.AF_INET, socket.AF_INET6}:
            continue
        # Connections inherit it. asyncio sets it only on sockets whose protocol was named when they were made, and
        # without it the second half of every answer waits 40 ms for an acknowledgement.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    gc.freeze()  # what was imported and made until here stays: no collection has to look at it again
    with contextlib.ExitStack() as stack:
        for listener in listeners:
            stack.enter_context(listener)
        stack.enter_context(repeats_counted())
        server = Server(settings, ConnectionLimits.of_this_process())
        try:
            server.run(sockets=list(listeners))
        finally:
            if server.deadline is not None:
                server.deadline.cancel()
