"""`allocator run`: the worker's port is leased while it lives, and free only when its whole group is gone."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from allocator.kernel.processes import process_group_members
from allocator.kernel.sockets import listening_ports

if TYPE_CHECKING:
    from collections.abc import Iterator

    from allocator import Lease, PoolSpec, PortAllocator

ROOT = Path(__file__).parents[2]
WORKER = [sys.executable, str(ROOT / "deploy/demo/worker.py"), f"--plugin-path={ROOT / 'deploy/demo/plugins/email'}"]
COMMAND = [*WORKER, "--org-id={org}", "--port={port}"]


@contextmanager
def running(
    redis_url: str, pool: PoolSpec, *words: str, command: list[str] | None = None
) -> Iterator[subprocess.Popen]:
    environment = os.environ | {
        "ALLOCATOR_REDIS_URL": redis_url,
        "ALLOCATOR_POOL": pool.name,
        "ALLOCATOR_HOST": "web-1",
        "PYTHONPATH": str(ROOT),
    }
    line = [sys.executable, "-m", "allocator", "run", "email", "--org", "org-1", *words, "--", *(command or COMMAND)]
    with subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
            process.communicate(timeout=30)


def ready_lease(ports: PortAllocator) -> Lease:
    pause = threading.Event()
    for _ in range(300):
        ready = [lease for lease in ports.leases() if lease.state == "ready"]
        if ready:
            return ready[0]
        pause.wait(0.05)
    raise AssertionError("no worker became ready")


def test_a_worker_is_ready_on_its_leased_port_and_sigterm_ends_it_and_its_lease(
    redis_url: str, pool: PoolSpec, ports: PortAllocator
) -> None:
    with running(redis_url, pool) as process:
        lease = ready_lease(ports)
        assert lease.port in listening_ports(pool.first, pool.last)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0
    assert ports.leases() == []
    assert process_group_members(lease.pid) == []


def test_the_environment_tells_the_worker_its_port_and_never_a_token_or_password(
    redis_url: str, pool: PoolSpec
) -> None:
    show = "import json, os; print(json.dumps(dict(os.environ)))"
    with running(redis_url, pool, command=[sys.executable, "-c", show]) as process:
        out, _ = process.communicate(timeout=30)
    told = json.loads(out)
    assert told["PORT"] == told["EMAIL_PLUGIN_PORT"] == told["HAY_WORKER_PORT"] == str(pool.first)
    assert told["ALLOCATOR_HOST"] == "web-1"
    assert int(told["ALLOCATOR_FENCE"]) > 0
    assert {"ALLOCATOR_TOKEN", "ALLOCATOR_REDIS_URL"}.isdisjoint(told)


def test_it_exits_as_the_command_did(redis_url: str, pool: PoolSpec, ports: PortAllocator) -> None:
    with running(redis_url, pool, command=["sh", "-c", "exit 7"]) as process:
        assert process.wait(timeout=20) == 7
    with running(redis_url, pool, command=["sh", "-c", "kill -9 $$"]) as process:
        assert process.wait(timeout=20) == 128 + signal.SIGKILL
    assert ports.leases() == []


def test_a_listener_that_survives_its_shell_is_ended_before_the_port_is_released(
    redis_url: str, pool: PoolSpec, ports: PortAllocator
) -> None:
    shell = ["sh", "-c", '"$@" & wait', "sh", *COMMAND]
    with running(redis_url, pool, command=shell) as process:
        lease = ready_lease(ports)
        os.kill(lease.pid, signal.SIGKILL)  # the shell alone: the listener goes on
        assert process.wait(timeout=20) == 128 + signal.SIGKILL
    assert lease.port not in listening_ports(pool.first, pool.last)
    assert ports.leases() == []


def test_a_port_that_is_in_use_is_declined_and_another_one_is_tried(
    redis_url: str, pool: PoolSpec, ports: PortAllocator
) -> None:
    conflict = f'[ $PORT = {pool.first} ] && {{ echo "Error: listen EADDRINUSE: :::$PORT" >&2; exit 2; }}; echo $PORT'
    with running(redis_url, pool, command=["sh", "-c", conflict.replace("{", "{{").replace("}", "}}")]) as process:
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (0, f"{pool.first + 1}\n")
    assert "trying another" in err
    kinds = [fields["type"] for _, fields in ports.store.newest_events(f"alloc:{{{pool.name}}}:events", 10)]
    assert kinds[-4:] == ["granted", "declined", "granted", "released"]


def test_an_explicit_port_that_a_process_has_names_that_process(redis_url: str, pool: PoolSpec) -> None:
    with (
        socket.create_server(("127.0.0.1", pool.first)),
        running(redis_url, pool, "--port", str(pool.first)) as process,
    ):
        _, err = process.communicate(timeout=30)
    assert process.returncode == 73
    assert f"pid {os.getpid()}" in err


def test_a_command_that_cannot_be_started_claims_nothing(
    redis_url: str, pool: PoolSpec, ports: PortAllocator, tmp_path: Path
) -> None:
    (tmp_path / "plain").write_text("not executable")
    for command, status in ((["/nowhere/worker"], 127), ([str(tmp_path / "plain")], 126)):
        with running(redis_url, pool, command=command) as process:
            assert process.wait(timeout=20) == status
    assert ports.store.newest_events(f"alloc:{{{pool.name}}}:events", 10)[-1][1]["type"] == "pool"


def test_a_second_ctrl_c_does_not_wait_for_a_stubborn_worker(
    redis_url: str, pool: PoolSpec, ports: PortAllocator
) -> None:
    stubborn = "import signal, socket, sys; signal.signal(15, signal.SIG_IGN); signal.signal(2, signal.SIG_IGN)\n"
    stubborn += "s = socket.create_server(('', int(sys.argv[1])))\nwhile True: s.accept()"
    command = [sys.executable, "-c", stubborn, "{port}"]
    with running(redis_url, pool, "--stop-timeout", "10m", command=command) as process:
        lease = ready_lease(ports)
        process.send_signal(signal.SIGINT)
        pause = threading.Event()
        while ports.leases()[0].state != "draining":
            pause.wait(0.02)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 128 + signal.SIGKILL
    assert process_group_members(lease.pid) == []
    assert ports.leases() == []
