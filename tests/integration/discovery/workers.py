"""HTTP workers inside the test's own process: real sockets on loopback, each says which one it is."""

from __future__ import annotations

import contextlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

from allocator import Lease, LeaseState, PortAllocator

if TYPE_CHECKING:
    from collections.abc import Iterator


class Worker:
    """An HTTP server on a leased port; counts what it answered.

    Args:
        allocator: Where the port is leased.
        org: Its organisation.
        instance: Which worker.
        address: Where it listens.
    """

    def __init__(
        self, allocator: PortAllocator, *, org: str = "org-123", instance: int = 0, address: str = "127.0.0.1"
    ) -> None:
        self.allocator = allocator
        self.held = allocator.start_heartbeats(allocator.claim("email", org=org, instance=instance))
        self.answered = 0
        self.bodies: list[bytes] = []
        worker = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                worker.answered += 1
                length = int(self.headers.get("Content-Length") or 0)
                worker.bodies.append(self.rfile.read(length))
                text = f"{worker.held.worker} {self.headers['Host']} {self.path}".encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            do_POST = do_GET  # noqa: N815  # the server calls it so

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer((address, self.held.port), Handler)
        self.server.daemon_threads = True
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    @property
    def lease(self) -> Lease:
        return self.held.lease

    def ready(self) -> Worker:
        self.set(LeaseState.READY)
        return self

    def set(self, state: LeaseState) -> None:
        """Write a state to the lease, and return when Redis has it."""
        self.allocator.update(self.held, state=state)
        while self.held.rewrite:
            threading.Event().wait(0.005)

    def close_socket(self) -> None:
        """Refuse connections from now on; the lease stays."""
        self.server.shutdown()
        self.server.server_close()
        self._thread.join()

    def stop(self) -> None:
        self.close_socket()
        self.allocator.end_held(self.held)


@contextlib.contextmanager
def fleet(url: str, pool: str, *hosts: str, replicas: int = 1) -> Iterator[list[Worker]]:
    """Ready workers of org-123/email on hosts that advertise loopback."""
    with contextlib.ExitStack() as stack:
        workers = []
        for host in hosts:
            allocator = PortAllocator.from_url(url, pool=pool, host=host, advertise="127.0.0.1")
            stack.enter_context(allocator)
            allocator.register()
            for _ in range(replicas):
                workers.append(Worker(allocator, instance=len(workers)).ready())
                stack.callback(workers[-1].server.server_close)
                stack.callback(workers[-1].server.shutdown)
        yield workers
