"""`doctor` finds what is wrong, says what mends it, and changes nothing."""

from __future__ import annotations

import json
import resource
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from servers import Server

from allocator.protocol import listing

if TYPE_CHECKING:
    from allocator import PoolSpec, PortAllocator


def findings(done) -> dict[str, list[dict]]:
    found: dict[str, list[dict]] = {}
    for one in json.loads(done.out)["findings"]:
        found.setdefault(one["check"], []).append(one)
    return found


def test_each_finding_has_what_mends_it_and_findings_exit_1(allocator, ports: PortAllocator, pool: PoolSpec) -> None:
    silent = ports.claim("email", org="org-1")
    from dataclasses import replace

    from allocator import LeaseState

    ports.renew(replace(silent, state=LeaseState.READY), rewrite=True)
    gone = ports.claim("stripe", org="org-1")
    ports.decline(gone)
    long = {str(gone.port): (time.time() + 600) * 1_000}  # a quarantine that outlasts this test on any machine
    ports.store._ready_client().zadd(f"alloc:{{{pool.name}}}:ports:web-1", long)
    ports.run(listing.cordon(pool.name, "web-1", on=True))
    free = next(port for port in range(pool.last, pool.first, -1) if can_listen(port))
    with socket.create_server(("127.0.0.1", free)):
        done = allocator("doctor", "--format", "json")
        text = allocator("doctor")
    assert done.code == text.code == 1
    found = findings(done)
    assert {"silent", "quarantine", "host", "stranger"} <= set(found)
    assert str(free) in "".join(one["what"] for one in found["stranger"])
    assert found["host"][0]["mend"] == "allocator host uncordon web-1"
    assert f"port {gone.port} is in quarantine" in found["quarantine"][0]["what"]
    assert all(one["what"] and one["mend"] for group in found.values() for one in group)
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
    words = f"ulimit -Sn 128; exec {sys.executable} -m allocator doctor --format json"
    done = subprocess.run(
        ["bash", "-c", words],
        env=allocator.environment(),
        cwd=allocator.state,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "may open 128 files" in done.stdout
    assert (soft, hard) == resource.getrlimit(resource.RLIMIT_NOFILE)


def test_a_user_who_may_only_read_is_told_so_and_a_server_that_forgets_is_named(allocator, pool: PoolSpec) -> None:
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
        assert "HDEL, ZREM, DEL, PEXPIRE, XTRIM" in found["rights"][0]["what"]
        assert "word" not in json.dumps(found)
        assert "persistence" in found
        assert "rights" not in findings(allocator("doctor", "--format", "json", **plain))
        assert client.dbsize() == before
