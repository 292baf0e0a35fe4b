"""A worker that fails is started again on its port; one that fails for ever is given up with its code."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
from process_groups import process_group_members
from supervised import LEAVE, NODE_WORKER, PYTHON_WORKER, WORKERS, Fleet, eventually, finish, is_running, needs_node

from allocator.kernel.processes import process_table
from allocator.operations.hosts import drain
from allocator.supervisor.cgroup import make_group, remove_group


@pytest.mark.parametrize("command", WORKERS)
def test_a_killed_worker_is_started_again_on_its_port(fleet: Fleet, command: list[str]) -> None:
    fleet.run("--health", "/health", command=command)
    before = fleet.lease()
    os.kill(fleet.listener(before.port), signal.SIGKILL)
    eventually(lambda: fleet.lease().restarts == 1)
    after = fleet.lease()
    assert (after.port, after.fence) == (before.port, before.fence)
    assert after.pid != before.pid
    assert process_group_members(before.pid) == []
    assert after.last_error.startswith(("ended by signal 9", "exit code 137"))


@pytest.mark.parametrize("command", WORKERS)
def test_a_worker_that_hangs_longer_than_its_limit_is_started_again(fleet: Fleet, command: list[str]) -> None:
    fleet.run("--health", "/health", "--health-interval", "100ms", "--health-kill-after", "500ms", command=command)
    before = fleet.lease()
    os.kill(fleet.listener(before.port), signal.SIGSTOP)
    eventually(lambda: fleet.lease().restarts == 1)
    assert fleet.lease().port == before.port
    error = fleet.lease().last_error
    assert "/health: no answer in time" in error or "stopped by a signal" in error, (
        "it stands still itself, or below it"
    )


@needs_node
def test_a_worker_that_reports_it_is_ill_is_degraded_and_ready_again_once_it_is_well(
    fleet: Fleet, tmp_path: Path
) -> None:
    sick = tmp_path / "sick"
    arguments = ("--health", "/health", "--health-interval", "100ms", "--health-kill-after", "0s")
    fleet.run(*arguments, command=NODE_WORKER, variables={"WORKER_SICK": str(sick)})
    lease = fleet.lease()
    sick.touch()
    assert fleet.lease("degraded").last_error == "/health: answered 503"
    sick.unlink()
    assert fleet.lease().restarts == 0
    assert fleet.lease().pid == lease.pid


def test_a_crash_loop_ends_with_the_childs_code_and_its_last_lines_are_recorded(fleet: Fleet) -> None:
    command = ["sh", "-c", "echo 'Failed to initialize plugin: no such org' >&2; exit 1"]
    status, _, err = finish(fleet.run("--max-restarts", "2", command=command))
    assert status == 1
    assert err.count("Failed to initialize plugin") >= 3
    assert "failed 3 times in a row and is given up: exit code 1" in err
    assert fleet.ports.leases() == []
    stream = f"alloc:{{{fleet.pool.name}}}:events"
    failures = [one for _, one in fleet.ports.store.newest_events(stream, 50) if one["type"] == "failed"]
    assert "no such org" in failures[-1]["error"]


def test_a_worker_that_ends_well_is_started_again_only_when_it_always_is(fleet: Fleet, tmp_path: Path) -> None:
    count = ["sh", "-c", f"echo x >> {tmp_path}/count; exit 0"]
    assert finish(fleet.run(command=count))[0] == 0
    assert (tmp_path / "count").read_text().count("x") == 1
    assert finish(fleet.run("--restart", "always", "--max-restarts", "2", command=count))[0] == 0
    assert (tmp_path / "count").read_text().count("x") == 4


def test_a_stop_during_the_pause_before_a_restart_ends_it(fleet: Fleet) -> None:
    process = fleet.run("--max-restarts", "1000", command=["sh", "-c", "exit 9"])
    eventually(lambda: any(lease.restarts for lease in fleet.ports.leases()))
    process.send_signal(signal.SIGTERM)
    assert finish(process)[0] in {9, 143}
    assert fleet.ports.leases() == []


def test_a_killed_supervisor_that_is_started_again_has_its_workers_port_at_once(fleet: Fleet) -> None:
    first = fleet.run("--ttl", "10m")
    before = fleet.lease()
    first.kill()
    first.wait()
    fleet.run("--ttl", "10m")
    after = eventually(lambda: next((one for one in fleet.ports.leases() if one.fence != before.fence), None))
    assert after.port == before.port
    assert "superseded" in fleet.events()


def test_a_lease_of_another_host_or_of_a_living_process_is_never_superseded(fleet: Fleet) -> None:
    fleet.run("--ttl", "10m")
    before = fleet.lease()
    for variables in ({}, {"ALLOCATOR_HOST": "web-2"}):
        status, _, err = finish(fleet.run(variables=variables))
        assert status == 73
        assert f"already has a lease on web-1:{before.port}" in err
    assert [one.fence for one in fleet.ports.leases()] == [before.fence]


@pytest.mark.parametrize("command", WORKERS)
def test_a_killed_supervisor_leaves_no_listening_orphan(fleet: Fleet, command: list[str]) -> None:
    process = fleet.run("--health", "/health", command=command)
    lease = fleet.lease()
    process.kill()
    process.wait()
    eventually(lambda: not process_group_members(lease.pid), "the worker outlived its supervisor")
    assert not fleet.listening()


@pytest.mark.parametrize("how", LEAVE)
def test_a_killed_supervisor_leaves_no_listener_that_left_the_process_group(fleet: Fleet, how: str) -> None:
    process = fleet.run(command=["sh", "-c", LEAVE[how], "sh", *PYTHON_WORKER])
    lease = fleet.lease()
    listener = fleet.listener(lease.port)
    assert process_table()[listener].group != lease.pid
    process.kill()
    process.wait()
    eventually(lambda: not is_running(listener), "the listener outlived its supervisor")
    assert not fleet.listening()


@needs_node
def test_an_orphan_that_is_kept_keeps_its_port_from_everyone(fleet: Fleet) -> None:
    process = fleet.run("--orphan", "keep", "--ttl", "15s", "--health", "/health", command=NODE_WORKER)
    lease = fleet.lease()
    process.kill()
    process.wait()
    os.kill(lease.pid, signal.SIGKILL)  # the wrapper alone
    status, _, err = finish(fleet.run(command=PYTHON_WORKER))
    assert (status, "still listens" in err) == (73, True)
    eventually(lambda: not fleet.ports.leases(), "its lease did not end by its TTL")
    claimed = [fleet.ports.claim("email", org=f"o-{number}").port for number in range(fleet.pool.size - 1)]
    assert lease.port not in claimed
    assert lease.port in fleet.listening()
    os.killpg(lease.pid, signal.SIGKILL)


SLOW_TO_STOP = (
    "import http.server, os, pathlib, signal, time\n"
    "def stop(*_):\n"
    "    pathlib.Path('stopping').touch()\n"
    "    while not pathlib.Path('go').exists(): time.sleep(0.02)\n"
    "    os._exit(0)\n"
    "signal.signal(signal.SIGTERM, stop)\n"
    "address = '127.0.0.1', int(os.environ['PORT'])\n"
    "http.server.HTTPServer(address, http.server.BaseHTTPRequestHandler).serve_forever()\n"
)
"""Says in its directory that it was told to end, and does so when it finds a file there."""


def test_a_host_that_is_drained_during_a_restart_ends_the_worker_as_a_drain_does(fleet: Fleet) -> None:
    command = [sys.executable, "-c", SLOW_TO_STOP]
    process = fleet.run("--replicas", "2", "--ttl", "1s", "--stop-timeout", "60s", command=command)
    eventually(lambda: [one.state for one in fleet.ports.leases()] == ["ready"] * 2)
    process.send_signal(signal.SIGHUP)
    eventually((fleet.state / "stopping").exists, "it was not told to end")
    fleet.ports.run(drain(fleet.pool.name, "web-1"))
    eventually(lambda: [one.state for one in fleet.ports.leases()] == ["draining"] * 2)
    (fleet.state / "go").touch()
    _, err = process.communicate(timeout=60)
    assert "Traceback" not in err
    assert process.returncode in {0, 128 + signal.SIGTERM}
    assert fleet.ports.leases() == []
    assert "declined" not in fleet.events()


def test_a_killed_supervisor_leaves_nothing_that_a_stray_started_last(fleet: Fleet) -> None:
    """What left by `setsid env -i` forks on: what it started within the last moment has no mark and no known parent."""
    forking = (
        "import os, time\nfor _ in range(300):\n    if os.fork() == 0: time.sleep(60), os._exit(0)\n    time.sleep(0.2)"
    )
    path = fleet.state / "forking.py"
    path.write_text(forking)
    script = f'env -i setsid {sys.executable} -S {path} & exec "$@"'
    process = fleet.run(command=["sh", "-c", script, "sh", *PYTHON_WORKER])
    lease = fleet.lease()

    def strays() -> list[int]:
        return [pid for pid in process_table() if os.fsencode(path) in _arguments(pid)]

    eventually(lambda: len(strays()) > 15)  # the first of them was seen long ago, on a busy machine too
    process.kill()
    process.wait()
    eventually(lambda: not strays(), "a child of a stray outlived the supervisor")
    assert not is_running(lease.pid)


def can_make_control_groups() -> bool:
    path = make_group(f"of-test-{os.getpid()}")
    if path is not None:
        remove_group(path)
    return path is not None


@pytest.mark.skipif(
    not can_make_control_groups(), reason="needs a cgroup v2 that can be written: root, or a delegated one"
)
def test_a_killed_supervisor_leaves_nothing_that_has_just_left_in_every_way(fleet: Fleet) -> None:
    """By `setsid env -i` and a second fork, a moment before: nobody could have looked at its parents."""
    leaving = (
        "import os, pathlib, sys, time\n"
        "if os.fork(): os._exit(0)\n"
        "pathlib.Path('part').write_text(str(os.getpid())), os.rename('part', 'left')\n"
        "time.sleep(600)"
    )
    (fleet.state / "leaving.py").write_text(leaving)
    leave = f'(until [ -e leave ]; do sleep 0.01; done; env -i setsid {sys.executable} -S leaving.py) & exec "$@"'
    process = fleet.run(command=["sh", "-c", leave, "sh", *PYTHON_WORKER])
    lease = fleet.lease()
    control = [line for line in Path(f"/proc/{lease.pid}/cgroup").read_text().splitlines() if line.startswith("0::")]
    assert "/allocator-" in control[0]
    (fleet.state / "leave").touch()
    eventually((fleet.state / "left").exists)
    process.kill()
    process.wait()
    left = int((fleet.state / "left").read_text())
    eventually(lambda: not is_running(left), "what left outlived the supervisor")
    assert not is_running(lease.pid)


def _arguments(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def test_a_guard_that_was_ended_is_replaced(fleet: Fleet) -> None:
    process = fleet.run(command=["sh", "-c", LEAVE["setsid"], "sh", *PYTHON_WORKER])
    lease = fleet.lease()
    listener = fleet.listener(lease.port)

    def guards() -> list[int]:
        table = process_table()
        return [
            pid for pid, row in table.items() if row.parent == process.pid and b"allocator-guard" in _arguments(pid)
        ]

    (guard,) = guards()
    os.kill(guard, signal.SIGKILL)
    eventually(lambda: [pid for pid in guards() if pid != guard])
    process.kill()
    process.wait()
    eventually(lambda: not is_running(listener))
