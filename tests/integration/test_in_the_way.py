"""What keeps a port from a worker is named as what it is: leases, rests, programs; TIME_WAIT is no program."""

from __future__ import annotations

import socket
import sys
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from supervised import Fleet, eventually, finish

from allocator import ExhaustedError, HeldError
from allocator.kernel.answers import prove_port
from allocator.kernel.socket_tables import closing_ports

if TYPE_CHECKING:
    from allocator import PoolSpec, PortAllocator


def leave_in_time_wait(port: int) -> None:
    """Let a closed connection of a server without SO_REUSEADDR stay behind on a port."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", port))
        server.listen()
        with socket.create_connection(server.getsockname()) as caller:
            server.accept()[0].close()
            caller.recv(1)
    eventually(lambda: closing_ports([port]) == {port})
    assert not prove_port(port)


def with_rules(ports: PortAllocator, pool: PoolSpec, **rules: int) -> None:
    ports.apply_pool(replace(pool, **rules))
    ports.session.context.rules.clear()


def quarantines(ports: PortAllocator, pool: PoolSpec) -> int:
    return len([one for _, one in newest(ports, pool) if one["type"] == "declined"])


def newest(ports: PortAllocator, pool: PoolSpec) -> list[tuple[str, dict[str, str]]]:
    return ports.store.newest_events(f"alloc:{{{pool.name}}}:events", 100)


def test_who_finds_no_port_reads_how_many_are_leased_rest_or_are_listened_on(
    ports: PortAllocator, pool: PoolSpec
) -> None:
    with_rules(ports, pool, last=pool.first + 5, cooldown_ms=60_000, grace_ms=60_000)
    with ExitStack() as stack:
        for port in (pool.first + 4, pool.first + 5):
            stack.enter_context(socket.create_server(("127.0.0.1", port)))
        leases = [ports.claim("email", org="o", instance=number) for number in range(4)]
        ports.release(leases[0])
        ports.decline(leases[1])
        with pytest.raises(ExhaustedError) as caught:
            ports.claim("email", org="o", instance=9)
    assert (
        f"({pool.first}-{pool.first + 5}) is free on web-1: 2 leased, 1 cooling down, 1 in quarantine, "
        "2 listened on by other programs; the next can free up in"
    ) in str(caught.value)
    assert caught.value.retry_after is not None


def test_a_pool_that_other_programs_have_whole_states_what_to_do(ports: PortAllocator, pool: PoolSpec) -> None:
    with_rules(ports, pool, last=pool.first + 1)
    with ExitStack() as stack:
        for port in (pool.first, pool.first + 1):
            stack.enter_context(socket.create_server(("127.0.0.1", port)))
        with pytest.raises(ExhaustedError) as caught:
            ports.claim("email", org="o")
    assert "2 listened on by other programs; none frees up by itself: end a program that" in str(caught.value)


def test_ports_in_time_wait_are_passed_over_without_quarantine_and_counted(
    ports: PortAllocator, pool: PoolSpec
) -> None:
    with_rules(ports, pool, last=pool.first + 7)
    for port in range(pool.first, pool.first + 7):
        leave_in_time_wait(port)
    assert ports.claim("email", org="o").port == pool.first + 7
    assert quarantines(ports, pool) == 0
    with pytest.raises(ExhaustedError) as caught:
        ports.claim("stripe", org="o")
    assert ": 1 leased, 7 with connections in TIME_WAIT; " in str(caught.value)


def test_an_explicit_port_in_time_wait_blames_nobody_and_can_be_waited_for(
    ports: PortAllocator, pool: PoolSpec
) -> None:
    port = pool.first + 20
    leave_in_time_wait(port)
    for wait in (None, "2s"):
        with pytest.raises(HeldError) as caught:
            ports.claim("email", org="o", port=port, wait=wait)
        assert f"port {port} on web-1 has closed connections in TIME_WAIT" in str(caught.value)
    assert quarantines(ports, pool) == 0
    assert ports.leases() == []


def test_a_worker_without_so_reuseaddr_is_started_on_its_port_again_until_it_has_it(fleet: Fleet) -> None:
    command = (
        "import os, socket, sys\n"
        "port = int(os.environ['PORT'])\n"
        "one = socket.socket()\n"
        "try: one.bind(('127.0.0.1', port))\n"
        "except OSError as error: sys.exit('EADDRINUSE: %s: 127.0.0.1:%d' % (error, port))\n"
        "one.listen()\n"
        "while True:\n"
        "    caller = one.accept()[0]\n"
        "    if caller.recv(1): break\n"
        "caller.close()\n"
        "sys.exit(3)"
    )
    process = fleet.run("--max-restarts", "1", command=[sys.executable, "-S", "-c", command])
    lease = fleet.lease()
    with socket.create_connection(("127.0.0.1", lease.port)) as caller:
        caller.sendall(b".")
        caller.recv(1)
    code, _, err = finish(process, timeout=60)
    assert code == 1, err
    assert f"port {lease.port} has connections of its former start in TIME_WAIT" in err
    assert "in use by" not in err
    assert "declined" not in fleet.events()
