"""A stranger that shares the worker's port, by SO_REUSEPORT or on another address or family, is noticed and named."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from supervised import Fleet, eventually, finish

from allocator.agent.family import ports_of_strangers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from allocator import Lease

# Servers set SO_REUSEADDR, here as elsewhere: a connection in TIME_WAIT, of an earlier test, would refuse it the port.
WORKER = (
    "import os, socket, sys\n"
    "one = socket.socket(socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET)\n"
    "one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)\n"
    "if sys.argv[2] == 'reuse': one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)\n"
    "one.bind((sys.argv[1], int(os.environ['PORT'])))\n"
    "one.listen()\n"
    "while True: one.accept()[0].close()"
)
STRANGER = WORKER.replace("int(os.environ['PORT'])", "int(sys.argv[3])").replace(
    "while True", "print('listening', flush=True)\nwhile True"
)
WAYS = {
    "SO_REUSEPORT": ("127.0.0.1", "reuse", "127.0.0.1"),
    "another family": ("127.0.0.1", "plain", "::1"),
    "another address": ("127.0.0.1", "plain", "127.0.0.2"),
    "all addresses": ("127.0.0.1", "reuse", "0.0.0.0"),
}


@contextlib.contextmanager
def stranger(address: str, how: str, port: int) -> Iterator[int]:
    arguments = [sys.executable, "-S", "-c", STRANGER, address, how, str(port)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "listening\n"
            yield process.pid
        finally:
            process.kill()


def run(fleet: Fleet, address: str, how: str) -> Lease:
    command = [sys.executable, "-S", "-c", WORKER, address, how]
    fleet.run("--health-interval", "100ms", command=command)
    return fleet.lease()


def failures(fleet: Fleet) -> list[str]:
    stream = f"alloc:{{{fleet.pool.name}}}:events"
    return [one["error"] for _, one in fleet.ports.store.newest_events(stream, 100) if one["type"] == "failed"]


@pytest.mark.parametrize("way", WAYS)
def test_a_stranger_on_the_workers_port_is_an_event_degraded_and_named_until_it_is_gone(fleet: Fleet, way: str) -> None:
    address, how, its_address = WAYS[way]
    lease = run(fleet, address, how)
    with stranger(its_address, how, lease.port) as pid:
        printed = f"process {pid} (python"
        shared = fleet.lease("degraded")
        assert printed in shared.last_error
        assert f"listens on port {lease.port} as well, on {its_address}" in shared.last_error
        assert [line for line in failures(fleet) if printed in line]
        listed = json.loads(finish(fleet.spawn("who", str(lease.port), "--format", "json"))[1])["listeners"]
        assert {one["pid"]: one["stranger"] for one in listed} == {lease.pid: False, pid: True}
        assert (
            f"(pid {pid}) listens on {its_address}:{lease.port}, leased by org-1/email#0"
            in (finish(fleet.spawn("doctor"))[1])
        )
        assert ports_of_strangers(lease.port, lease.port, {lease.port: shared}) == {lease.port}
    assert ports_of_strangers(lease.port, lease.port, {lease.port: shared}) == set()
    again = fleet.lease()
    assert (again.pid, again.restarts) == (lease.pid, 0)


def test_a_worker_that_listens_with_many_processes_and_families_has_no_stranger(fleet: Fleet) -> None:
    many = (
        "import os, socket, time\n"
        "for number in range(6):\n"
        "    if os.fork() == 0:\n"
        "        if number % 2: os.setsid()\n"
        "        if number % 3 == 0 and os.fork(): os._exit(0)\n"
        "        one = socket.socket(socket.AF_INET6 if number == 5 else socket.AF_INET)\n"
        "        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)\n"
        "        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)\n"
        "        if number == 5: one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)\n"
        "        one.bind(('::1' if number == 5 else '127.0.0.1', int(os.environ['PORT'])))\n"
        "        one.listen()\n"
        "        while True: one.accept()[0].close()\n"
        "time.sleep(600)"
    )
    for port in range(fleet.pool.first, fleet.pool.last + 1):
        leave_in_time_wait(port)
    fleet.run("--health-interval", "50ms", command=[sys.executable, "-S", "-c", many])
    lease = fleet.lease()
    eventually(lambda: len(_listeners(lease.port)) == 6)
    for _ in range(20):
        assert fleet.lease().fence == lease.fence
    assert failures(fleet) == []


def leave_in_time_wait(port: int) -> None:
    """Let a connection of a former worker stay behind on the port, as they do after every test."""
    with socket.create_server(("127.0.0.1", port)) as server, socket.create_connection(server.getsockname()) as caller:
        server.accept()[0].close()
        caller.recv(1)


def _listeners(port: int) -> list[object]:
    from allocator.kernel.socket_tables import listening_sockets

    return [one for one in listening_sockets() if one.port == port]


def test_a_stranger_on_a_further_port_is_noticed_too(fleet: Fleet) -> None:
    both = (
        "import os, socket\n"
        "ones = [socket.create_server(('127.0.0.1', int(os.environ[name]))) for name in ('PORT_HTTP', 'PORT_DEBUG')]\n"
        "while True: ones[0].accept()[0].close()"
    )
    arguments = ("--ports", "http,debug", "--health-interval", "100ms")
    fleet.run(*arguments, command=[sys.executable, "-S", "-c", both])
    eventually(lambda: [one.state for one in fleet.ports.leases()] == ["ready"] * 2)
    debug = next(one for one in fleet.ports.leases() if "+debug" in str(one.worker))
    with socket.create_server(("127.0.0.2", debug.port)):
        eventually(lambda: [one.state for one in fleet.ports.leases()] == ["degraded"] * 2)
        assert f"process {os.getpid()} " in fleet.ports.leases()[0].last_error
    eventually(lambda: [one.state for one in fleet.ports.leases()] == ["ready"] * 2)
