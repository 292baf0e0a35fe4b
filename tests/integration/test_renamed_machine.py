"""A machine whose own name changed: its leases are found by machine. `unshare --uts` gives the command another name."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import redis
from supervised import eventually

from allocator.operations.find import OVERDUE
from allocator.protocol.keys import lease_key

if TYPE_CHECKING:
    from allocator import Lease, PoolSpec, PortAllocator

ROOT = Path(__file__).parents[2]
BEFORE, AFTER = "name-before", "name-after"


def can_rename() -> bool:
    arguments = ["unshare", "--uts", "sh", "-c", f"hostname {BEFORE}"]
    try:
        return subprocess.run(arguments, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


pytestmark = pytest.mark.skipif(not can_rename(), reason="another host name needs root, unshare(1) and hostname(1)")


@dataclass
class Machine:
    """Runs commands on this machine under a name that it has or had."""

    variables: dict[str, str]

    other_boot: Path | None = None

    def arguments(self, name: str, *arguments: str) -> list[str]:
        if self.other_boot is None:
            return ["unshare", "--uts", "sh", "-c", f'hostname {name}; exec "$0" "$@"', sys.executable, *arguments]
        boot = f"mount --bind {self.other_boot} /proc/sys/kernel/random/boot_id"
        program = f'hostname {name}; {boot}; exec "$0" "$@"'
        unshare = ["unshare", "--uts", "--pid", "--fork", "--mount-proc", "--kill-child"]
        return [*unshare, "sh", "-c", program, sys.executable, *arguments]

    def rebooted(self, tmp_path: Path) -> Machine:
        """Return it after another boot, which begins with each command."""
        other_boot = tmp_path / "boot_id"
        other_boot.write_text("12345678-1234-4123-8123-123456789abc\n")
        return dataclasses.replace(self, other_boot=other_boot)

    def spawn(self, name: str, *arguments: str, **variables: str) -> subprocess.Popen:
        return subprocess.Popen(
            self.arguments(name, "-m", "allocator", *arguments),
            env=self.variables | variables,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def __call__(self, name: str, *arguments: str, code: int = 0, **variables: str) -> tuple[str, str]:
        process = self.spawn(name, *arguments, **variables)
        out, err = process.communicate(timeout=60)
        assert process.returncode == code, err
        assert "Traceback" not in err
        return out.strip(), err


@pytest.fixture
def machine(redis_url: str, pool: PoolSpec, tmp_path: Path) -> Machine:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ALLOCATOR_")}
    own = {"ALLOCATOR_REDIS_URL": redis_url, "ALLOCATOR_POOL": pool.name, "XDG_STATE_HOME": str(tmp_path)}
    return Machine(kept | own | {"PYTHONPATH": str(ROOT)})


@pytest.mark.parametrize("target", ["port", "worker", "--all"])
def test_release_and_renew_find_the_lease_and_state_under_which_name(
    machine: Machine, ports: PortAllocator, target: str
) -> None:
    port, _ = machine(BEFORE, "claim", "email", "--org", "o")
    (lease,) = ports.leases()
    assert lease.host == BEFORE
    fields = {"port": port, "worker": "o/email#0", "--all": "--all"}[target]
    _, printed = machine(AFTER, "renew", fields, "--ttl", "25s")
    assert f"this machine was called {BEFORE} before and is {AFTER} now" in printed
    (renewed,) = ports.leases()
    assert (renewed.host, renewed.port, renewed.fence, renewed.ttl_ms) == (BEFORE, lease.port, lease.fence, 25_000)
    _, printed = machine(AFTER, "release", fields)
    assert f"this machine was called {BEFORE} before" in printed
    assert ports.leases() == []
    _, printed = machine(AFTER, "release", fields)
    assert "nothing to release" in printed


def test_a_name_that_was_chosen_is_another_host_and_the_command_names_it(
    machine: Machine, ports: PortAllocator
) -> None:
    port, _ = machine(BEFORE, "claim", "email", "--org", "o")
    for arguments in ([port], ["--all"]):
        _, printed = machine(BEFORE, "release", *arguments, "--host", "elsewhere")
        assert f"nothing to release; this user has leases as host {BEFORE}: name it with --host" in printed
    _, printed = machine(BEFORE, "renew", port, "--host", "elsewhere", code=73)
    assert f"claim it again; this user has leases as host {BEFORE}" in printed
    assert [lease.host for lease in ports.leases()] == [BEFORE]


@pytest.mark.parametrize("command", ["claim", "run"])
def test_who_claims_again_ends_the_lease_of_before_and_has_one_under_the_name_of_now(
    machine: Machine, ports: PortAllocator, command: str
) -> None:
    machine(BEFORE, "claim", "email", "--org", "o")
    arguments = ("--", "sh", "-c", "echo $ALLOCATOR_HOST") if command == "run" else ()
    out, printed = machine(AFTER, command, "email", "--org", "o", *arguments)
    assert f"as host {BEFORE}, as this machine was called before" in printed
    if command == "run":
        assert (out, ports.leases()) == (AFTER, [])
    else:
        assert [lease.host for lease in ports.leases()] == [AFTER]


def test_the_supervisor_of_a_killed_one_ends_what_that_left_under_the_name_of_before(
    machine: Machine, ports: PortAllocator
) -> None:
    first = machine.spawn(BEFORE, "run", "email", "--org", "o", "--", "sleep", "600")
    with first:
        eventually(lambda: any(lease.pid for lease in ports.leases()))
        (lease,) = ports.leases()
        os.kill(lease.holder_pid or 0, 9)
    out, printed = machine(AFTER, "run", "email", "--org", "o", "--", "sh", "-c", "echo $ALLOCATOR_HOST")
    assert out == AFTER
    assert f"as host {BEFORE}, as this machine was called before" in printed
    assert ports.leases() == []


@pytest.mark.parametrize("command", ["claim", "run"])
def test_a_worker_that_runs_keeps_its_port(machine: Machine, ports: PortAllocator, command: str) -> None:
    port, _ = machine(BEFORE, "claim", "email", "--org", "o")
    arguments = ("--", "true") if command == "run" else ()
    with socket.create_server(("127.0.0.1", int(port))):
        _, printed = machine(AFTER, command, "email", "--org", "o", *arguments, code=73)
        assert f"(pid {os.getpid()}" in printed
        assert [lease.host for lease in ports.leases()] == [BEFORE]


def test_an_agent_started_under_the_name_of_now_goes_on_with_the_leases_of_before(
    machine: Machine, ports: PortAllocator
) -> None:
    with subprocess.Popen(["sleep", "600"]) as worker:
        machine(BEFORE, "claim", "email", "--org", "o", "--pid", str(worker.pid), "--ttl", "10s")
        (lease,) = ports.leases()
        agent = machine.spawn(AFTER, "agent")
        try:
            eventually(lambda: [one.expires_at > lease.expires_at for one in ports.leases()] == [True])
            assert [(one.host, one.fence) for one in ports.leases()] == [(BEFORE, lease.fence)]
            worker.kill()
            eventually(lambda: ports.leases() == [])
        finally:
            worker.kill()
            agent.terminate()
            agent.communicate(timeout=30)


TTL_S = 600


def renewed_last(redis_url: str, pool: PoolSpec, lease: Lease, part: float, more_s: float = 0) -> None:
    """Make the last renewal of a lease to have been this part of its TTL ago, less some seconds."""
    left_ms = int(((1 - part) * TTL_S + more_s) * 1_000)
    with redis.Redis.from_url(redis_url) as server:
        assert server.pexpire(lease_key(pool.name, BEFORE, str(lease.port)), left_ms)


@pytest.mark.parametrize("command", ["claim", "run", "release", "renew"])
def test_a_machine_that_was_started_again_under_another_name_finds_what_it_left(
    machine: Machine, ports: PortAllocator, redis_url: str, pool: PoolSpec, tmp_path: Path, command: str
) -> None:
    machine(BEFORE, "claim", "email", "--org", "o", "--ttl", f"{TTL_S}s")
    (lease,) = ports.leases()
    renewed_last(redis_url, pool, lease, OVERDUE)
    fields = {
        "claim": ("email", "--org", "o"),
        "run": ("email", "--org", "o", "--", "sh", "-c", "echo $ALLOCATOR_HOST"),
    }
    out, printed = machine.rebooted(tmp_path)(AFTER, command, *fields.get(command, ("o/email",)))
    left = [(one.host, one.fence) for one in ports.leases()]
    if command in {"release", "renew"}:
        assert f"this machine was called {BEFORE} before and is {AFTER} now" in printed
        assert left == ([] if command == "release" else [(BEFORE, lease.fence)])
    else:
        assert f"as host {BEFORE}, as this machine was called before" in printed
        assert ([host for host, _ in left], out == AFTER) == (([AFTER], False) if command == "claim" else ([], True))


@pytest.mark.parametrize("command", ["claim", "release", "renew"])
def test_a_copy_of_a_machine_that_still_renews_leaves_its_leases_alone(
    machine: Machine, ports: PortAllocator, redis_url: str, pool: PoolSpec, tmp_path: Path, command: str
) -> None:
    """The copy has its lease files and its machine id, another name and another boot."""
    out, _ = machine(BEFORE, "claim", "email", "--org", "o", "--ttl", f"{TTL_S}s", "--format", "json")
    token = json.loads(out)["token"]
    (lease,) = ports.leases()
    renewed_last(redis_url, pool, lease, OVERDUE, more_s=5)
    arguments = ("email", "--org", "o") if command == "claim" else ("o/email",)
    with machine.rebooted(tmp_path).spawn(AFTER, command, *arguments) as copy:
        assert copy.stderr
        assert f"host {BEFORE} may be this one" in copy.stderr.readline()
        ports.renew(dataclasses.replace(lease, token=token))
        _, printed = copy.communicate(timeout=60)
    assert copy.returncode == (0 if command == "release" else 73), printed
    assert BEFORE in printed
    assert [(one.host, one.fence) for one in ports.leases()] == [(BEFORE, lease.fence)]


def test_a_lease_that_lives_long_is_not_waited_for(
    machine: Machine, ports: PortAllocator, redis_url: str, pool: PoolSpec, tmp_path: Path
) -> None:
    machine(BEFORE, "claim", "email", "--org", "o", "--ttl", f"{TTL_S}s")
    (lease,) = ports.leases()
    renewed_last(redis_url, pool, lease, 0.3)
    _, printed = machine.rebooted(tmp_path)(AFTER, "claim", "email", "--org", "o", code=73)
    assert f"o/email#0 already has a lease on {BEFORE}:{lease.port} until" in printed
    assert printed.count("\n") == 1
