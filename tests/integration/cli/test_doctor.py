"""`doctor` finds what is wrong, says what mends it, and changes nothing."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from servers import Server, client_of

from allocator.database.leader import Leader
from allocator.operations import listing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from allocator import Lease, PoolSpec, PortAllocator


def findings(done) -> dict[str, list[dict]]:
    found: dict[str, list[dict]] = {}
    for one in json.loads(done.out)["findings"]:
        found.setdefault(one["check"], []).append(one)
    return found


def test_each_finding_has_what_fixes_it_and_findings_exit_1(allocator, ports: PortAllocator, pool: PoolSpec) -> None:
    silent = ports.claim("email", org="org-1")
    from allocator import LeaseState

    ports.renew(replace(silent, state=LeaseState.READY), rewrite=True)
    gone = ports.claim("stripe", org="org-1")
    ports.decline(gone)
    until_ms = int(time.time() + 600) * 1_000  # a quarantine that outlasts this test on any machine
    client, base = client_of(ports.store), f"alloc:{{{pool.name}}}"
    client.zadd(f"{base}:ports:web-1", {str(gone.port): until_ms})
    client.hset(f"{base}:host:web-1", f"strikes:{gone.port}", f"5 {until_ms - 600_000} {until_ms}")
    ports.run(listing.cordon(pool.name, "web-1", on=True))
    free = next(port for port in range(pool.last, pool.first, -1) if can_listen(port))
    with socket.create_server(("127.0.0.1", free)):
        done = allocator("doctor", "--format", "json")
        text = allocator("doctor")
    assert done.code == text.code == 1
    found = findings(done)
    assert {"silent", "quarantine", "host", "stranger"} <= set(found)
    assert str(free) in "".join(one["what"] for one in found["stranger"])
    assert found["host"][0]["fix"] == "allocator host uncordon web-1"
    assert f"port {gone.port} is in quarantine" in found["quarantine"][0]["what"]
    assert all(one["what"] and one["fix"] for group in found.values() for one in group)
    assert all(one["mend"] == one["fix"] for group in found.values() for one in group)  # its old name
    assert text.out.count("finding  ") == sum(map(len, found.values()))
    assert str(silent.token) not in done.out + text.out


def can_listen(port: int) -> bool:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def test_a_low_limit_of_files_is_found(allocator) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    text = f"ulimit -Sn 128; exec {sys.executable} -m allocator doctor --format json"
    done = subprocess.run(
        ["bash", "-c", text],
        env=allocator.environment(),
        cwd=allocator.state,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "may open 128 files" in done.stdout
    assert (soft, hard) == resource.getrlimit(resource.RLIMIT_NOFILE)


def test_a_user_who_may_only_read_is_informed_and_a_server_that_forgets_is_named(allocator, pool: PoolSpec) -> None:
    with Server() as server:
        server.ready()
        client = server.client()
        rules = "on >word ~* &* -@all +@read +@connection +@scripting +time +info"
        client.execute_command("ACL", "SETUSER", "looker", *rules.split())
        plain = {"ALLOCATOR_REDIS_URL": server.url, "ALLOCATOR_POOL": "sdk-v2"}
        assert allocator("claim", "email", "--org", "org-1", **plain).code == 0
        before = client.dbsize()
        looker = f"redis://looker:word@127.0.0.1:{server.port}"
        found = findings(allocator("doctor", "--format", "json", **plain | {"ALLOCATOR_REDIS_URL": looker}))
        assert "HSET, HDEL, HINCRBY, SET, DEL, UNLINK," in found["rights"][0]["what"]
        assert "'holder'" in found["rights"][0]["fix"]
        assert "word" not in json.dumps(found)
        assert "persistence" in found
        assert "rights" not in findings(allocator("doctor", "--format", "json", **plain))
        assert client.dbsize() == before


def test_a_redis_that_is_away_is_a_finding_and_the_rest_is_looked_at_all_the_same(allocator) -> None:
    (allocator.state / "allocator/leases").mkdir(parents=True)
    garbled = allocator.state / "allocator/leases/sdk-v2@web-1@5556.json"
    garbled.write_text("{")
    away = {
        "ALLOCATOR_REDIS_URL": "redis://me:S3CRET@127.0.0.1:1",
        "ALLOCATOR_DATABASE_URL": "postgresql://127.0.0.1:1/x",
        "ALLOCATOR_CONNECT_TIMEOUT": "200ms",
    }
    done = allocator("doctor", "--format", "json", **away)
    assert done.code == 1
    found = findings(done)
    assert "did not answer" in found["redis"][0]["what"]
    assert "does not answer" in found["database"][0]["what"]
    assert found["leftover"][0]["fix"] == f"rm {garbled}"
    assert "S3CRET" not in done.out + done.err
    assert allocator("doctor", **away).out.startswith("server   away\n")


def test_a_server_that_evicts_is_a_finding_with_the_command_that_fixes_it(allocator) -> None:
    with Server("--maxmemory-policy", "allkeys-lru") as server:
        server.ready()
        found = findings(allocator("doctor", "--format", "json", ALLOCATOR_REDIS_URL=server.url))
        assert "redis-cli config set maxmemory-policy noeviction" in found["redis"][0]["fix"]
        shown = allocator("doctor", ALLOCATOR_REDIS_URL=server.url).out
        assert shown.startswith("server   not usable as it is\n")  # it answers: it is not away
        server.client().config_set("maxmemory-policy", "noeviction")
        assert "redis" not in findings(allocator("doctor", "--format", "json", ALLOCATOR_REDIS_URL=server.url))


def test_a_table_that_lacks_something_drifts_or_has_no_leader_is_found(
    allocator, ports: PortAllocator, tmp_path
) -> None:
    database = {"ALLOCATOR_DATABASE_URL": f"sqlite:///{tmp_path}/workers.sqlite3"}
    assert "database" not in findings(allocator("doctor", "--format", "json"))
    found = findings(allocator("doctor", "--format", "json", **database))
    assert found["database"][0]["fix"] == "allocator db upgrade"
    assert not (tmp_path / "workers.sqlite3").exists()
    assert allocator("db", "upgrade", **database).code == 0
    ports.claim("email", org="org-1")
    found = findings(allocator("doctor", "--format", "json", **database))
    assert "database" not in found
    assert "1 missing-row" in found["drift"][0]["what"]
    assert found["leader"][0]["fix"] == "allocator reconcile --watch"
    assert allocator("reconcile", "--once", **database).code == 0
    leader = Leader(ports)
    leader.take()
    found = findings(allocator("doctor", "--format", "json", **database))
    assert not {"drift", "leader", "database"} & set(found)


def test_a_lease_that_is_bound_to_a_process_wants_an_agent(allocator) -> None:
    with subprocess.Popen(["sleep", "600"]) as worker:
        try:
            port = allocator("claim", "email", "--org", "org-1", "--ttl", "10m", "--pid", str(worker.pid)).out.strip()
            alone = findings(allocator("doctor", "--format", "json"))["agent"][0]
            with agent_of(allocator) as agent:
                assert "agent" not in findings(allocator("doctor", "--format", "json"))
                agent.send_signal(signal.SIGSTOP)
                silent = findings(allocator("doctor", "--format", "json"))["agent"][0]
                agent.send_signal(signal.SIGCONT)
                agent.kill()
        finally:
            worker.kill()
    found = findings(allocator("doctor", "--format", "json"))
    assert (alone["what"].startswith(f"port {port} of org-1/email#0"), alone["fix"]) == (True, "allocator agent")
    assert silent["fix"].startswith(f"kill {agent.pid} ")
    assert "has ended" in found["agent"][0]["what"]
    assert found["agent"][0]["fix"] == f"allocator release {port}"
    assert "agent.sock is left of an agent" in found["leftover"][0]["what"]


@contextlib.contextmanager
def agent_of(allocator) -> Iterator[subprocess.Popen]:
    arguments = [sys.executable, "-m", "allocator", "agent"]
    with subprocess.Popen(arguments, env=allocator.environment(), stderr=subprocess.PIPE, text=True) as agent:
        try:
            line = next(line for line in agent.stderr if "looking after" in line)
            assert "agent.sock" in line
            yield agent
        finally:
            agent.kill()


def test_what_killed_commands_left_is_found_once_it_is_old(allocator, ports: PortAllocator) -> None:
    port = allocator("claim", "email", "--org", "org-1").out.strip()
    ports.release(replace(saved(allocator), deadline=None))
    leases = allocator.state / "allocator/leases"
    old = time.time() - 3_600
    for name in (".new-x", ".claim@p@h@o@email@0"):
        (leases / name).write_text("")
        os.utime(leases / name, (old, old))
    (leases / ".new-y").write_text("")
    found = findings(allocator("doctor", "--format", "json"))["leftover"]
    assert {one["fix"].rpartition("or rm ")[2].removeprefix("rm ") for one in found} == {
        f"allocator release {port}",
        str(leases / ".new-x"),
        f"{leases}/.claim@p@h@o@email@0",
    }
    assert allocator("release", port).code == 0
    assert len(findings(allocator("doctor", "--format", "json"))["leftover"]) == 2


def saved(allocator) -> Lease:
    from allocator.client.lease_files import LeaseFiles

    (lease,) = LeaseFiles(allocator.state / "allocator/leases").all()
    return lease


def test_a_claim_that_another_machine_would_be_in_the_way_of_is_found(
    allocator, ports: PortAllocator, pool: PoolSpec
) -> None:
    ports.claim("email", org="org-1")
    client_of(ports.store).hset(f"alloc:{{{pool.name}}}:host:web-1", "identity", "0123456789abcdef a-boot 4026531840")
    assert allocator("claim", "stripe", "--org", "org-1").code == 73
    (found,) = findings(allocator("doctor", "--format", "json"))["host"]
    assert "another machine has 1 live leases under the name web-1" in found["what"]
    assert "--host" in found["fix"]


def test_it_shows_what_runs_here_and_since_when(allocator) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "allocator", "agent"],
        env=allocator.environment(),
        cwd=allocator.state,
        stderr=subprocess.PIPE,
        text=True,
    ) as agent:
        try:
            assert any("looking after" in line for line in agent.stderr)
            shown = allocator("doctor").out
            assert f"program  agent, pid {agent.pid}, for " in shown
            programs = json.loads(allocator("doctor", "--format", "json").out)["programs"]
            assert {"name": "agent", "pid": agent.pid} in [{k: one[k] for k in ("name", "pid")} for one in programs]
        finally:
            agent.terminate()
            agent.communicate()


def test_a_claim_for_a_process_without_an_agent_warns_and_names_the_command(allocator) -> None:
    done = allocator("claim", "email", "--org", "org-1", "--pid", str(os.getpid()))
    assert done.code == 0
    assert "start one with 'allocator agent'" in done.err
    assert allocator("claim", "stripe", "--org", "org-1").err == ""
