"""The promise: no running worker loses its port because Redis lost its data."""

from __future__ import annotations

import os
import signal
import socket
import threading
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

from servers import client_of

from allocator import ExhaustedError, PoolSpec, PortAllocator
from allocator.store.embedded import EmbeddedServer

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def listen(port: int) -> socket.socket:
    one = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    one.bind(("::", port))
    one.listen()
    return one


def await_fences(held: list, above: int) -> None:
    deadline = threading.Event()
    for _ in range(200):
        if all(one.fence > above for one in held):
            return
        deadline.wait(0.05)
    raise AssertionError(f"{sum(one.fence <= above for one in held)} leases were not re-asserted")


def fill(ports: PortAllocator, stack: ExitStack, pool: PoolSpec) -> list:
    held = []
    for number in range(pool.size):
        one = stack.enter_context(ports.hold("email", org=f"org-{number}", ttl=2.0))
        stack.enter_context(listen(one.port))
        held.append(one)
    return held


def test_flushall_under_44_holders_costs_none_its_port(tmp_path: Path, pool: PoolSpec) -> None:
    server = EmbeddedServer(tmp_path)
    try:
        with PortAllocator.from_url(server.ensure(), pool=pool.name, host="web-1") as ports, ExitStack() as stack:
            ports.apply_pool(pool)
            held = fill(ports, stack, pool)
            before = {one.worker: one.port for one in held}
            highest = max(one.fence for one in held)

            client_of(ports.store).flushall()
            with PortAllocator.from_url(server.url, pool=pool.name, host="web-1") as newcomer:
                newcomer.apply_pool(pool)
                try:
                    lease = newcomer.claim("email", org="newcomer")
                except ExhaustedError:
                    lease = None
            assert lease is None

            await_fences(held, highest)
            assert {one.worker: one.port for one in held} == before
            assert {lease.worker: lease.port for lease in ports.leases()} == before
            assert not any(one.lost.is_set() for one in held)
    finally:
        server.stop()


def test_restart_without_its_data_costs_no_holder_its_port(tmp_path: Path, pool: PoolSpec) -> None:
    server = EmbeddedServer(tmp_path)
    try:
        with PortAllocator.from_url(server.ensure(), pool=pool.name, host="web-1") as ports, ExitStack() as stack:
            ports.apply_pool(pool)
            held = fill(ports, stack, pool)
            before = {one.worker: one.port for one in held}
            highest = max(one.fence for one in held)
            server.stop()
            for path in (tmp_path / "embedded" / "appendonlydir").glob("*"):
                path.unlink()
            server.ensure()
            with PortAllocator.from_url(server.url, pool=pool.name, host="web-1") as newcomer:
                newcomer.apply_pool(pool)
                with suppress(ExhaustedError):
                    raise AssertionError(f"a newcomer got {newcomer.claim('email', org='newcomer')}")
            await_fences(held, highest)
            assert {lease.worker: lease.port for lease in ports.leases()} == before
    finally:
        server.stop()


def test_a_holder_gets_its_port_back_after_a_newcomer_was_refused_it_by_the_kernel(
    redis_url: str, pool: PoolSpec, ports: PortAllocator
) -> None:
    lease = ports.claim("email", org="old")
    client = client_of(ports.store)
    client.delete(*client.scan_iter(match=f"alloc:{{{pool.name}}}*"))
    ports.apply_pool(pool)
    with socket.socket() as bound:
        bound.bind(("0.0.0.0", lease.port))  # bound, not listening: only the proof can see it
        with PortAllocator.from_url(redis_url, pool=pool.name, host="web-1") as newcomer:
            other = newcomer.claim("email", org="new")
        assert other.port != lease.port
    (again,) = ports.renew(lease)
    assert again.port == lease.port
    assert again.fence > other.fence


def test_script_flush_is_not_noticed(ports: PortAllocator) -> None:
    lease = ports.claim("email", org="org-1")
    client = client_of(ports.store)
    client.script_flush()
    (renewed,) = ports.renew(lease)
    client.script_flush()
    assert renewed.fence == lease.fence
    assert ports.release(renewed)


def test_the_embedded_server_killed_under_a_holder_comes_back_with_its_lease(
    tmp_path: Path, pool: PoolSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    server = EmbeddedServer(tmp_path / "allocator")
    try:
        with PortAllocator.from_url(pool=pool.name, host="web-1") as ports:
            ports.apply_pool(pool)
            with ports.hold("email", org="org-1", ttl=1.0) as held:
                deadline = held.lease.deadline
                os.kill(server.status().pid, signal.SIGKILL)
                pause = threading.Event()
                while held.lease.deadline <= deadline:
                    pause.wait(0.05)
                assert [one.port for one in ports.leases()] == [held.port]
                assert not held.lost.is_set()
    finally:
        server.stop()
