"""Actors that are commands of the product: `run` and `reconcile`, forked with everything imported, and recorded."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from allocator.__main__ import status_of
from allocator.client import blocking
from torture.history import Book
from torture.recording import RecordingStore

if TYPE_CHECKING:
    from torture.actors import Part

LISTENER = """
import signal, socket, sys
listening = socket.create_server(("", int(sys.argv[1])))
signal.pause()
"""


def words_of(part: Part) -> list[str]:
    """Return the command that an actor is."""
    if part.kind == "reconciler":
        return ["reconcile", "--watch", "--every", "2s", "--database-url", part.database]
    worker = [sys.executable, "-I", "-S", "-c", LISTENER, "{port}"]
    return ["run", "sup", "--org", part.name, "--ttl", f"{part.ttl_s:.0f}s", "--wait", "3s", "--", *worker]


def play(part: Part) -> int:
    """Be a command; return its exit status."""
    for name in [name for name in os.environ if name.startswith("ALLOCATOR_")]:
        del os.environ[name]
    state = Path(part.directory) / f"state-{part.name}"
    state.mkdir()
    os.environ |= {
        "ALLOCATOR_REDIS_URL": part.url, "ALLOCATOR_POOL": part.pool, "ALLOCATOR_HOST": "web-1",
        "XDG_STATE_HOME": str(state),
    }  # fmt: skip
    RecordingStore.book = Book(Path(part.directory) / f"actor-{part.name}.jsonl")
    blocking.Store = RecordingStore
    return status_of(words_of(part))
