"""`allocator agent`: a lease that is tied to a process lives exactly as long as that process."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import httpx
import pytest
from servers import client_of
from supervised import PYTHON_WORKER, Fleet, eventually, finish

from allocator import PortAllocator

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from allocator import Lease


def agent(fleet: Fleet, *arguments: str, **variables: str) -> subprocess.Popen:
    """Start an agent and wait until it looks after its leases."""
    started = fleet.spawn("agent", *arguments, variables=variables)
    for line in started.stderr:
        if "looking after" in line:
            return started
    raise AssertionError(f"the agent ended with {started.wait()}")


def claim(fleet: Fleet, pid: int, *arguments: str, plugin: str = "email") -> int:
    status, out, err = finish(fleet.spawn("claim", plugin, "--org", "org-1", "--pid", str(pid), *arguments))
    assert status == 0, err
    return int(out)


def files(fleet: Fleet) -> list[Path]:
    return sorted((fleet.state / "allocator/leases").glob("*@*@*.json"))


def only(fleet: Fleet) -> Lease:
    (lease,) = fleet.ports.leases()
    return lease


def test_a_lease_lives_beyond_its_ttl_while_its_process_does_and_ends_with_it(
    fleet: Fleet, process: subprocess.Popen
) -> None:
    agent(fleet)
    port = claim(fleet, process.pid, "--ttl", "1s")
    fence, granted = only(fleet).fence, only(fleet).granted_at
    eventually(lambda: only(fleet).expires_at > granted + 3)
    assert (only(fleet).fence, only(fleet).port) == (fence, port)
    process.kill()
    process.wait()
    eventually(lambda: not fleet.ports.leases())
    eventually(lambda: not files(fleet))
    assert fleet.events()[-1] == "released"


def test_a_killed_agent_that_is_started_again_takes_everything_over(fleet: Fleet, process: subprocess.Popen) -> None:
    first = agent(fleet)
    claim(fleet, process.pid, "--ttl", "5m")
    with subprocess.Popen(["sleep", "600"]) as other:
        claim(fleet, other.pid, "--ttl", "5m", plugin="stripe")
        before = {one.worker: (one.port, one.fence) for one in fleet.ports.leases()}
        first.kill()
        first.wait()
        other.kill()
    agent(fleet)
    eventually(lambda: [one.plugin for one in fleet.ports.leases()] == ["email"])
    assert (only(fleet).port, only(fleet).fence) == before[only(fleet).worker]


def test_leases_of_an_earlier_boot_are_released_at_once(fleet: Fleet, process: subprocess.Popen) -> None:
    claim(fleet, process.pid, "--ttl", "5m")
    (path,) = files(fleet)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"boot": "00000000-0000-0000-0000-000000000000"}))
    agent(fleet)
    eventually(lambda: not files(fleet))
    assert process.poll() is None


def test_leases_of_an_earlier_boot_that_only_redis_knows_are_released_at_once(
    fleet: Fleet, process: subprocess.Popen
) -> None:
    """Those of `run` have no lease file: the token went with the supervisor."""
    earlier = {"boot": "00000000-0000-0000-0000-000000000000", "holder_pid": 1, "holder_started": 1}
    gone = fleet.ports.claim("email", org="org-1", ttl=300)
    fleet.ports.renew(replace(gone, **earlier), rewrite=True)
    kept = fleet.ports.claim("stripe", org="org-1", ttl=300, holder_pid=process.pid)
    with PortAllocator.from_url(fleet.redis_url, pool=fleet.pool.name, host="web-2") as other_host:
        elsewhere = other_host.claim("slack", org="org-1", ttl=300)
        other_host.renew(replace(elsewhere, **earlier), rewrite=True)
    agent(fleet)
    eventually(lambda: len(fleet.ports.leases()) == 2)
    assert {one.fence for one in fleet.ports.leases()} == {kept.fence, elsewhere.fence}
    assert fleet.ports.claim("email", org="org-1").port == gone.port


def test_a_lease_that_redis_lost_is_re_asserted_on_its_port(fleet: Fleet, process: subprocess.Popen) -> None:
    agent(fleet)
    port = claim(fleet, process.pid, "--ttl", "1s")
    client = client_of(fleet.ports.store)
    for key in client.scan_iter(match=f"alloc:{{{fleet.pool.name}}}:*"):
        client.delete(key)
    fleet.ports.apply_pool(fleet.pool)
    eventually(lambda: [one.port for one in fleet.ports.leases()] == [port])
    eventually(lambda: json.loads(files(fleet)[0].read_text())["fence"] == only(fleet).fence)


def test_a_worker_that_claims_again_with_its_new_process_keeps_its_lease(
    fleet: Fleet, process: subprocess.Popen
) -> None:
    agent(fleet)
    port = claim(fleet, process.pid)
    with subprocess.Popen(["sleep", "600"]) as newer:
        assert claim(fleet, newer.pid) == port
        fence = only(fleet).fence
        process.kill()
        process.wait()
        claim(fleet, newer.pid, plugin="stripe")
        eventually(lambda: len(fleet.ports.leases()) == 2)
        newer.kill()
    eventually(lambda: not fleet.ports.leases())
    events = fleet.ports.store.newest_events(f"alloc:{{{fleet.pool.name}}}:events", 50)
    assert [one["fence"] for _, one in events if one["type"] == "released"].count(str(fence)) == 1


def test_a_lease_that_asks_for_it_is_checked(fleet: Fleet, tmp_path: Path) -> None:
    agent(fleet)
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    command = ["sh", "-c", f'port=$(cat {gate}); exec "$@" --port=$port', "sh", *PYTHON_WORKER[:-1]]
    with subprocess.Popen([name.replace("{org}", "org-1") for name in command]) as worker:
        port = claim(fleet, worker.pid, "--label", "health=/health")
        assert only(fleet).state == "starting"
        gate.write_text(f"{port}\n")
        assert fleet.lease("ready").port == port
        worker.kill()
    eventually(lambda: not fleet.ports.leases())


def test_it_serves_the_api_on_its_socket_and_looks_after_what_is_claimed_there(
    fleet: Fleet, process: subprocess.Popen
) -> None:
    running = agent(fleet)
    path = fleet.state / "allocator/agent.sock"
    assert path.stat().st_mode & 0o077 == 0
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://localhost") as client:
        body = {"plugin": "email", "org": "org-1", "pid": process.pid, "ttl_s": 1.0}
        granted = client.post("/v1/leases", json=body)
        assert granted.status_code == 201, granted.text
        token = {"Allocator-Token": granted.headers["Allocator-Token"]}
        assert client.patch(granted.headers["Location"], headers=token, json={}).status_code == 200
        since = only(fleet).granted_at
        eventually(lambda: only(fleet).expires_at > since + 2.5)
        assert [one["port"] for one in client.get("/v1/leases").json()["leases"]] == [granted.json()["port"]]
    process.kill()
    process.wait()
    eventually(lambda: not fleet.ports.leases())
    running.send_signal(signal.SIGTERM)
    assert finish(running)[0] == 0
    assert not path.exists()


def test_a_claim_over_http_whose_answer_never_came_ends_by_its_ttl(fleet: Fleet, process: subprocess.Popen) -> None:
    agent(fleet)
    with at_the_agent(fleet) as client:
        body = {"plugin": "email", "org": "org-1", "pid": process.pid, "ttl_s": 1.0}
        assert client.post("/v1/leases", json=body).status_code == 201
        assert files(fleet) == []
        eventually(lambda: client.get("/v1/leases").json()["leases"] == [])


def test_a_lease_that_is_given_another_process_lives_as_long_as_that_one(
    fleet: Fleet, process: subprocess.Popen
) -> None:
    agent(fleet)
    with at_the_agent(fleet) as client, subprocess.Popen(["sleep", "600"]) as newer:
        body = {"plugin": "email", "org": "org-1", "pid": process.pid, "ttl_s": 1.0}
        granted = client.post("/v1/leases", json=body)
        token = {"Allocator-Token": granted.headers["Allocator-Token"]}
        for pid in (process.pid, newer.pid):
            printed = {"pid": pid, "state": "ready", "labels": {"team": "mail"}}
            assert client.patch(granted.headers["Location"], headers=token, json=printed).json()["pid"] == pid
        process.kill()
        process.wait()
        since = only(fleet).granted_at
        eventually(lambda: only(fleet).expires_at > since + 3)
        assert (only(fleet).pid, only(fleet).state, only(fleet).labels) == (newer.pid, "ready", {"team": "mail"})
        newer.kill()
        newer.wait()
        eventually(lambda: not fleet.ports.leases())


def test_a_lease_that_its_holder_gives_back_over_http_is_no_longer_looked_after(
    fleet: Fleet, process: subprocess.Popen
) -> None:
    running = agent(fleet)
    with at_the_agent(fleet) as client:
        granted = client.post("/v1/leases", json={"plugin": "email", "org": "org-1", "pid": process.pid})
        token = {"Allocator-Token": granted.headers["Allocator-Token"]}
        assert client.patch(granted.headers["Location"], headers=token, json={}).status_code == 200
        eventually(lambda: files(fleet))
        assert client.delete(granted.headers["Location"], headers=token | JSON).json() == {"ended": True}
        assert files(fleet) == []
    running.send_signal(signal.SIGTERM)
    assert "lost" not in finish(running)[2]


def at_the_agent(fleet: Fleet) -> httpx.Client:
    path = fleet.state / "allocator/agent.sock"
    return httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://localhost", timeout=60)


def test_the_service_manager_hears_that_it_is_ready_lives_and_ends(fleet: Fleet) -> None:
    path = fleet.state / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(path))
        channel.settimeout(30)
        running = fleet.spawn("agent", variables={"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "200000"})
        assert channel.recv(500).startswith(b"READY=1\nSTATUS=looking after 0 leases")
        assert channel.recv(500) == b"WATCHDOG=1"
        assert channel.recv(500) == b"WATCHDOG=1"
        running.terminate()
        while (printed := channel.recv(500)) == b"WATCHDOG=1":
            pass
        assert printed == b"STOPPING=1"
    assert finish(running)[0] == 0


def test_one_agent_at_a_time_and_what_cannot_be_right_is_one_line(fleet: Fleet) -> None:
    first = agent(fleet)
    status, _, err = finish(fleet.spawn("agent"))
    assert (status, err) == (73, f"allocator: an agent (pid {first.pid}) looks after host web-1 already\n")
    first.kill()
    first.wait()
    for arguments, expected, printed in (
        (("--listen", "0.0.0.0:0"), 78, "the agent listens on loopback only"),
        (("--listen", "nowhere"), 78, "is not an address to listen on"),
        (("--leases", "/nowhere"), 2, "'/nowhere' is not a directory of lease files"),
        (("--socket", "/nowhere/a.sock"), 78, "cannot be made"),
    ):
        status, _, err = finish(fleet.spawn("agent", *arguments))
        assert (status, printed in err, len(err.splitlines())) == (expected, True, 1), err


def test_a_broken_lease_file_stops_nobody(fleet: Fleet, process: subprocess.Popen) -> None:
    port = claim(fleet, process.pid)
    (fleet.state / "allocator/leases/p@web-1@99.json").write_text("{")
    until = only(fleet).expires_at
    agent(fleet)
    eventually(lambda: only(fleet).expires_at > until)
    assert only(fleet).port == port


def test_it_works_on_when_redis_comes_later(fleet: Fleet, process: subprocess.Popen) -> None:
    claim(fleet, process.pid, "--ttl", "5m")
    running = agent(fleet, ALLOCATOR_REDIS_URL="redis://127.0.0.1:1", ALLOCATOR_CONNECT_TIMEOUT="200ms")
    process.kill()
    process.wait()
    assert any("goes on trying" in line for line in running.stderr)  # its API may have told of its own trouble before
    running.terminate()
    assert finish(running)[0] == 0
    assert len(fleet.ports.leases()) == 1
    agent(fleet)
    eventually(lambda: not fleet.ports.leases())


JSON = {"Content-Type": "application/json"}
LISTEN = """
import os, signal, socket, sys, time
signal.signal(signal.SIGHUP, signal.SIG_IGN)
with open(sys.argv[1]) as gate:
    port = int(gate.readline())
with socket.create_server(("127.0.0.1", port)) as server:
    while True:
        connection, _ = server.accept()
        connection.close()
"""


@contextlib.contextmanager
def listening_worker(tmp_path: Path, *before: str) -> Iterator[tuple[subprocess.Popen, Path]]:
    """A worker that listens when it is told its port, perhaps behind a wrapper, in a session of its own."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    arguments = [*before, sys.executable, "-c", LISTEN, str(gate)]
    with subprocess.Popen(arguments, start_new_session=True) as worker:
        try:
            yield worker, gate
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(worker.pid, signal.SIGKILL)


def test_a_lease_of_a_hook_becomes_ready_when_its_process_listens(fleet: Fleet, tmp_path: Path) -> None:
    agent(fleet)
    with listening_worker(tmp_path) as (worker, gate):
        port = claim(fleet, worker.pid)
        assert only(fleet).state == "starting"
        gate.write_text(f"{port}\n")
        assert fleet.lease("ready").port == port
        assert fleet.ports.resolve("email", org="org-1").port == port
        worker.kill()
    eventually(lambda: not fleet.ports.leases())


def test_a_lease_goes_with_the_listener_when_its_wrapper_dies(fleet: Fleet, tmp_path: Path) -> None:
    agent(fleet)
    with listening_worker(tmp_path, "sh", "-c", '"$@"; true', "sh") as (wrapper, gate):
        port = claim(fleet, wrapper.pid, "--ttl", "2s")
        gate.write_text(f"{port}\n")
        fence = fleet.lease("ready").fence
        listener = fleet.listener(port)
        assert listener != wrapper.pid
        wrapper.kill()
        eventually(lambda: only(fleet).pid == listener, "the lease did not go with the listener")
        since = only(fleet).expires_at
        eventually(lambda: only(fleet).expires_at > since + 3)
        assert (only(fleet).fence, only(fleet).state) == (fence, "ready")
        os.kill(listener, signal.SIGKILL)
    eventually(lambda: not fleet.ports.leases(), "the lease outlived its listener")


@pytest.mark.parametrize("restarted", [False, True], ids=["one agent", "an agent that is started meanwhile"])
def test_leases_of_a_drained_host_are_ready_again_after_uncordon(fleet: Fleet, tmp_path: Path, restarted: bool) -> None:
    running = agent(fleet)
    with listening_worker(tmp_path) as (worker, gate):
        port = claim(fleet, worker.pid, "--ttl", "2s")
        gate.write_text(f"{port}\n")
        fleet.lease("ready")
        status, _, err = finish(fleet.spawn("host", "drain", "web-1", "--no-wait"))
        assert status == 0, err
        seen = fleet.lease("draining").expires_at
        eventually(lambda: only(fleet).expires_at > seen, "the agent did not renew")  # and so has seen the drain
        if restarted:
            running.kill()
            running.wait()
        status, _, err = finish(fleet.spawn("host", "uncordon", "web-1"))
        assert status == 0, err
        if restarted:
            agent(fleet)
        assert fleet.lease("ready").port == port
        worker.kill()


def test_an_agent_whose_messages_nobody_reads_renews_and_ends(fleet: Fleet, process: subprocess.Popen) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, b"." * 65_536)
    os.set_blocking(writer, True)
    try:
        running = fleet.spawn("agent", stderr=writer, stdout=writer)
        eventually((fleet.state / "allocator/agent.sock").is_socket)
        claim(fleet, process.pid, "--ttl", "1s")
        granted = only(fleet).granted_at
        eventually(lambda: only(fleet).expires_at > granted + 4)
        running.send_signal(signal.SIGTERM)
        assert running.wait(20) == 0
    finally:
        os.close(reader)
        os.close(writer)


def test_a_stranger_on_the_port_of_a_bound_process_is_named_until_it_is_gone(fleet: Fleet) -> None:
    agent(fleet)
    listener = (
        "import socket, sys\n"
        "port = int(sys.stdin.readline())\n"
        "with socket.create_server(('127.0.0.1', port)) as one:\n"
        "    while True: one.accept()[0].close()"
    )
    arguments = [sys.executable, "-S", "-c", listener]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, text=True, start_new_session=True) as worker:
        try:
            port = claim(fleet, worker.pid)
            worker.stdin.write(f"{port}\n")
            worker.stdin.flush()
            fleet.lease("ready")
            with socket.create_server(("127.0.0.2", port)):
                shared = fleet.lease("degraded")
                assert f"process {os.getpid()} " in shared.last_error
                assert f"listens on port {port} as well, on 127.0.0.2" in shared.last_error
            assert fleet.lease("ready").pid == worker.pid
        finally:
            worker.kill()
