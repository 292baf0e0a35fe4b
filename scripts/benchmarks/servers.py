"""A Redis of the benchmark's own: no persistence, one Unix socket and one loopback port, gone at the end."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import redis

from allocator.store.embedded.process import MALLOC_VARIABLES, server_binaries

if TYPE_CHECKING:
    from collections.abc import Iterator

START_TIMEOUT_S = 10.0
SERVER_CPU, CLIENT_CPU = 0, 1


@contextlib.contextmanager
def apart(server_pid: int) -> Iterator[bool]:
    """Give server and client a CPU each for a while, where the system can; gives whether it did."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_setaffinity") else set()
    possible = {SERVER_CPU, CLIENT_CPU} <= allowed
    if possible:
        os.sched_setaffinity(server_pid, {SERVER_CPU})
        os.sched_setaffinity(0, {CLIENT_CPU})
    try:
        yield possible
    finally:
        if possible:
            os.sched_setaffinity(0, allowed)


@contextlib.contextmanager
def server(binary: str | None) -> Iterator[dict[str, str]]:
    """Run a server; gives its URLs (`tcp`, `unix`), its socket's `path`, and whether both sides are `pinned`."""
    binary = binary or next(iter(server_binaries()))
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        path, port = Path(directory) / "redis.sock", _free_port()
        listening = ["--port", str(port), "--bind", "127.0.0.1", "--unixsocket", str(path)]
        arguments = [*listening, "--save", "", "--dir", directory]
        process = subprocess.Popen(
            [binary, *arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | MALLOC_VARIABLES,
        )
        try:
            urls = {"tcp": f"redis://127.0.0.1:{port}", "unix": f"unix://{path}", "path": str(path)}
            _wait(process, urls["tcp"])
            with apart(process.pid) as pinned:
                yield urls | {"pinned": "yes" if pinned else "no"}
        finally:
            process.terminate()
            process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait(process: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(redis.ConnectionError):
            redis.Redis.from_url(url).ping()
            return
        time.sleep(0.02)
    raise SystemExit("the benchmark's server did not start; name another with --server")
