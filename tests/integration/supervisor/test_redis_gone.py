"""Redis gone for longer than any lease lives, and back with its data or without: no worker notices."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest
from servers import Server
from supervised import Fleet, eventually, finish

from allocator import PoolSpec, PortAllocator

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TTL_S = 1.0
WORKERS = 6
LISTEN = "import socket, sys, time; s = socket.create_server(('', int(sys.argv[1])))\nwhile True: s.accept()"


@pytest.fixture
def server() -> Iterator[Server]:
    with Server("--appendonly", "yes", "--appendfsync", "always") as one:
        yield one.ready()


@pytest.fixture
def fleet(server: Server, pool: PoolSpec, tmp_path: Path) -> Iterator[Fleet]:
    with PortAllocator.from_url(server.url, pool=pool.name, host="web-1") as ports:
        ports.apply_pool(pool)
        one = Fleet(server.url, pool, ports, tmp_path)
        try:
            yield one
        finally:
            one.clean()


@pytest.mark.parametrize("empty", [False, True], ids=["with its data", "empty"])
def test_redis_stopped_for_three_ttls_restarts_no_worker_and_moves_none(
    server: Server, fleet: Fleet, empty: bool
) -> None:
    arguments = ("--replicas", str(WORKERS), "--ttl", f"{TTL_S:g}s", "--health-interval", "200ms")
    process = fleet.run(*arguments, command=[sys.executable, "-S", "-c", LISTEN, "{port}"])
    eventually(lambda: [one.state for one in fleet.ports.leases()] == ["ready"] * WORKERS)
    before = {one.worker: (one.port, one.pid) for one in fleet.ports.leases()}
    highest = max(one.fence for one in fleet.ports.leases())

    server.process.kill()
    server.process.wait()
    assert not threading.Event().wait(3 * TTL_S)  # that it is gone for so long is what is tested
    assert fleet.listening() == frozenset(port for port, _ in before.values())
    if empty:
        shutil.rmtree(server.directory / "appendonlydir")
    server.process = subprocess.Popen(server.process.args, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    server.ready()

    eventually(
        lambda: len(fleet.ports.leases()) == WORKERS and all(one.fence > highest for one in fleet.ports.leases())
    )
    after = fleet.ports.leases()
    assert {one.worker: (one.port, one.pid) for one in after} == before
    assert {(one.restarts, one.state) for one in after} == {(0, "ready")}
    process.terminate()
    status, _, err = finish(process)
    assert status == 143
    assert err.count(" is ready on ") == WORKERS
    assert fleet.ports.leases() == []
