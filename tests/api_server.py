"""A real HTTP server on a loopback port, and a caller that keeps the tokens of its leases."""

from __future__ import annotations

import contextlib
import socket
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import uvicorn

from allocator.api.connections import ConnectionLimits
from allocator.api.server import Server

if TYPE_CHECKING:
    from collections.abc import Iterator

    import httpx


JSON = {"Content-Type": "application/json"}
"""What every request that changes something has to say."""


@contextlib.contextmanager
def served(application: Any, port: int = 0) -> Iterator[str]:
    """Serve an application on a loopback port, which the kernel chooses unless it is given; gives its URL."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(128)
    settings = uvicorn.Config(application, http="h11", log_config=None, access_log=False, timeout_graceful_shutdown=1)
    server = Server(settings, ConnectionLimits.of_this_process())
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


@dataclass
class Worker:
    """A caller of the API that keeps the tokens of what it claimed."""

    http: httpx.Client
    tokens: dict[tuple[str, int], str] = field(default_factory=dict)

    def claim(
        self, plugin: str = "email", org: str = "org-1", *, headers: dict | None = None, **arguments: Any
    ) -> dict:
        answer = self.http.post("/v1/leases", json={"plugin": plugin, "org": org, **arguments}, headers=headers)
        assert answer.status_code == 201, answer.text
        lease = answer.json()
        self.tokens[lease["host"], lease["port"]] = answer.headers["Allocator-Token"]
        return lease

    def proof(self, lease: dict) -> dict[str, str]:
        return {"Allocator-Token": self.tokens[lease["host"], lease["port"]], **JSON}

    def path(self, lease: dict, tail: str = "") -> str:
        return f"/v1/leases/{lease['host']}/{lease['port']}{tail}"
