"""Actors that are commands of the product (`run`, `reconcile`, `agent`), and processes whose leases the agent keeps."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from allocator import Lease, WorkerId
from allocator.__main__ import status_of
from allocator.client import blocking
from allocator.client.lease_files import LeaseFiles
from torture.clients import HOST, Client
from torture.history import Book
from torture.recording import RecordingStore

if TYPE_CHECKING:
    from torture.clients import ClientSpec

LISTENER = """
import signal, socket, sys
try:
    listening = socket.create_server(("", int(sys.argv[1])))
except OSError as error:
    sys.exit(str(error))
signal.pause()
"""


def arguments_of(part: ClientSpec) -> list[str]:
    """Return the command that an actor is."""
    if part.kind == "reconciler":
        return ["reconcile", "--watch", "--every", "2s", "--database-url", part.database]
    if part.kind == "agent":
        return ["agent"]
    worker = [sys.executable, "-I", "-S", "-c", LISTENER, "{port}"]
    return ["run", "sup", "--org", part.name, "--ttl", f"{part.ttl_s:.0f}s", "--wait", "3s", "--", *worker]


def prepare(part: ClientSpec, book: Book) -> Path:
    """Give this process the settings of its part; return where its state is."""
    for name in [name for name in os.environ if name.startswith("ALLOCATOR_")]:
        del os.environ[name]
    shared = part.kind in {"agent", "bound"}  # the agent looks after the lease files of the others
    state = Path(part.directory) / ("state-of-all" if shared else f"state-{part.name}")
    state.mkdir(exist_ok=True)
    os.environ |= {
        "ALLOCATOR_REDIS_URL": part.url, "ALLOCATOR_POOL": part.pool, "ALLOCATOR_HOST": HOST,
        "XDG_STATE_HOME": str(state),
    }  # fmt: skip
    RecordingStore.book = book
    blocking.Store = RecordingStore
    return state / "allocator"


def run_client(part: ClientSpec) -> int:
    """Be a command; return its exit status."""
    prepare(part, Book(Path(part.directory) / f"actor-{part.name}.jsonl"))
    return status_of(arguments_of(part))


class BoundProcess(Client):
    """A process whose lease the agent keeps for as long as both live; it ends without giving it back."""

    def __init__(self, part: ClientSpec) -> None:
        super().__init__(part)
        self.files = LeaseFiles(prepare(part, self.book) / "leases")

    def run_client(self) -> int:
        arguments = [
            "claim",
            "bound",
            "--org",
            self.part.name,
            "--pid",
            str(os.getpid()),
            "--ttl",
            f"{self.part.ttl_s:.0f}s",
        ]
        if status_of(arguments):
            time.sleep(self.rng.uniform(0.2, 1.0))
            return 0
        until = time.monotonic() + self.rng.uniform(1.0, 12.0)
        lease = self.lease()
        if lease is None:
            return 0
        try:
            sockets = self.bind(lease)
        except OSError:
            return 0
        while not self.leaves() and (self.stands() or time.monotonic() < until):
            if self.lease() is None:  # the agent was notified that it is lost
                break
            time.sleep(0.1)
        self.unbind(lease.port, sockets)
        return 0

    def lease(self) -> Lease | None:
        return self.files.find(self.part.pool, HOST, WorkerId(self.part.name, "bound"))
