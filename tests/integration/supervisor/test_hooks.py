"""A pre-start hook claims, `run` goes on with that lease; never with one that somebody else looks after or uses."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

from supervised import PYTHON_WORKER, Fleet, eventually, finish


def claim(fleet: Fleet, *arguments: str) -> str:
    status, out, err = finish(fleet.spawn("claim", "email", "--org", "org-1", *arguments))
    assert status == 0, err
    return out.strip()


def test_run_goes_on_with_the_lease_that_a_hook_claimed(fleet: Fleet) -> None:
    port = int(claim(fleet, "--ttl", "10m", "--label", "team=blue"))
    (before,) = fleet.ports.leases()
    process = fleet.run()
    lease = fleet.lease()
    assert (lease.port, lease.fence, dict(lease.labels)) == (port, before.fence, {"team": "blue"})
    assert lease.ttl_ms == fleet.pool.ttl_ms, "a worker that crashes does not keep its port for the hook's ten minutes"
    process.terminate()
    finish(process)
    assert fleet.ports.leases() == []
    assert [printed for printed in fleet.events() if printed != "changed"][-2:] == ["granted", "released"]


def test_a_hook_and_a_run_that_are_both_started_again_after_a_kill_have_the_port_at_once(fleet: Fleet) -> None:
    port = claim(fleet, "--ttl", "10m")
    first = fleet.run("--ttl", "10m")
    fleet.lease()
    first.kill()
    first.wait()
    assert claim(fleet) == port
    fleet.run()
    eventually(lambda: [(one.port, one.state) for one in fleet.ports.leases()] == [(int(port), "ready")])


def test_run_goes_on_with_a_lease_that_is_bound_to_what_started_it(fleet: Fleet) -> None:
    script = f'{sys.executable} -m allocator claim email --org org-1 --pid $$ && exec "$@"'
    arguments = [sys.executable, "-m", "allocator", "run", "email", "--org", "org-1", "--", *PYTHON_WORKER]
    process = subprocess.Popen(
        ["sh", "-c", script, "sh", *arguments], env=fleet.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    fleet.started.append(process)
    lease = fleet.lease()
    assert (lease.port, int(process.stdout.readline())) == (fleet.pool.first, fleet.pool.first)
    assert fleet.events().count("granted") == 1
    assert lease.holder_pid == process.pid


def test_a_lease_of_another_living_process_is_left_to_it(fleet: Fleet, process: subprocess.Popen) -> None:
    port = claim(fleet, "--pid", str(process.pid))
    status, _, err = finish(fleet.run())
    assert status == 73
    printed = (
        f"org-1/email#0 already has a lease on web-1:{port}, bound to process {process.pid} (sleep); end that process"
    )
    assert printed in err
    process.kill()
    process.wait()
    fleet.run()
    assert fleet.lease().port == int(port)


def test_a_lease_whose_port_somebody_uses_is_left_alone(fleet: Fleet) -> None:
    port = int(claim(fleet))
    with socket.create_server(("127.0.0.1", port)):
        status, _, err = finish(fleet.run())
    assert status == 73
    assert f"already has a lease on web-1:{port}, and " in err
    assert f"(pid {os.getpid()}" in err
    assert [one.port for one in fleet.ports.leases()] == [port]


def test_another_port_than_the_hooks_can_be_demanded(fleet: Fleet) -> None:
    claim(fleet)
    fleet.run("--port", str(fleet.pool.last))
    assert fleet.lease().port == fleet.pool.last
    assert len(fleet.ports.leases()) == 1


def test_a_broken_lease_file_keeps_no_worker_from_its_port(fleet: Fleet) -> None:
    claim(fleet)
    leases = fleet.state / "allocator/leases"
    (leases / f"{fleet.pool.name}@web-1@{fleet.pool.last}.json").write_text("{")
    process = fleet.spawn("run", "stripe", "--org", "org-1", "--", *PYTHON_WORKER)
    assert fleet.lease().plugin == "stripe"
    process.terminate()
    finish(process)
