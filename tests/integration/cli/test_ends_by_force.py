"""What an operator ends that somebody else holds: leases, hosts that are gone, pools; and who is asked before."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from allocator import PortAllocator

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import Allocator

    from allocator import PoolSpec


@pytest.fixture
def elsewhere(redis_url: str, pool: PoolSpec) -> Iterator[PortAllocator]:
    with PortAllocator.from_url(redis_url, pool=pool.name, host="web-7") as found:
        yield found


def at_a_terminal(allocator: Allocator, answer: str, *arguments: str) -> tuple[int, str]:
    """Run a command whose terminal gets an answer; return its status and what the terminal shows."""
    main, side = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "allocator", *arguments],
        env=allocator.environment(),
        stdin=side,
        stdout=side,
        stderr=side,
        start_new_session=True,
    )
    os.close(side)
    os.write(main, f"{answer}\n".encode())
    shown = b""
    while True:
        try:
            piece = os.read(main, 4_096)
        except OSError:  # nobody has the terminal open any more
            break
        if not piece:
            break
        shown += piece
    os.close(main)
    return process.wait(60), shown.decode()


def test_a_lease_of_another_host_is_ended_with_a_reason_that_the_events_keep(allocator, elsewhere) -> None:
    lease = elsewhere.claim("email", org="org-1", ttl="1h")
    for arguments in (["--force"], ["--force", "--reason", " "], ["--reason", "burnt"], ["--yes"]):
        refused = allocator("release", "org-1/email", *arguments)
        assert (refused.code, "reason" in refused.err) == (2, True), refused
    assert allocator("release", "--all", "--force", "--reason", "burnt").code == 2
    done = allocator("release", "org-1/email", "--force", "--reason", "burnt")
    assert (done.code, "is ended" in done.err) == (0, True)
    event = json.loads(allocator("events", "--count", "1", "--format", "json").out)
    assert (event["type"], event["port"], event["reason"]) == ("released", str(lease.port), "burnt")
    assert event["by"].endswith("@web-1")
    again = allocator("release", "org-1/email", "--force", "--reason", "burnt")
    assert (again.code, "nothing to end" in again.err) == (0, True)


def test_a_port_that_is_ended_by_force_is_one_of_the_host_that_is_named(allocator, ports, elsewhere) -> None:
    mine, other = ports.claim("email", org="org-1"), elsewhere.claim("email", org="org-2")
    assert mine.port == other.port
    assert allocator("release", str(mine.port), "--host", "web-7", "--force", "--reason", "burnt").code == 0
    assert [lease.host for lease in ports.leases()] == ["web-1"]


def test_the_further_ports_of_a_worker_are_ended_with_it(allocator, ports, elsewhere) -> None:
    elsewhere.claim_ports("email", ["http", "debug"], org="org-1")
    assert allocator("release", "org-1/email", "--force", "--reason", "burnt").code == 0
    assert ports.leases() == []


def test_a_worker_whose_lease_an_operator_ended_is_stopped(allocator, ports) -> None:
    worker = "import http.server, sys; http.server.test(port=int(sys.argv[1]), bind='127.0.0.1')"
    run = ["run", "email", "--org", "org-1", "--ttl", "2s", "--", sys.executable, "-c", worker, "{port}"]
    with subprocess.Popen(
        [sys.executable, "-m", "allocator", *run], env=allocator.environment(), stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        while "is ready" not in process.stderr.readline():
            pass
        assert allocator("release", "org-1/email", "--force", "--reason", "it must go").code == 0
        printed = process.stderr.read()
        assert process.wait(60) == 73
    assert "was ended by an operator; stop this worker" in printed
    assert ports.leases() == []


def test_a_host_that_is_gone_is_forgotten_by_force(allocator, ports, elsewhere) -> None:
    elsewhere.claim("email", org="org-1", ttl="1h")
    refused = allocator("host", "forget", "web-7")
    assert (refused.code, "--force" in refused.err) == (73, True)
    done = allocator("host", "forget", "web-7", "--force", "--reason", "its disk died")
    assert (done.code, "1 lease ended" in done.err) == (0, True)
    assert ports.leases() == []
    assert "web-7" not in allocator("host", "ls").out
    (event,) = allocator("events", "--type", "forgotten").out.splitlines()
    assert re.fullmatch(r".*  forgotten   web-7  -  by=\S+ reason=its disk died", event)


def test_a_pool_is_removed_when_it_has_no_lease_or_by_force(allocator, ports, elsewhere) -> None:
    elsewhere.claim("email", org="org-1", ttl="1h")
    name = ports.session.pool
    assert allocator("pool", "rm", name).code == 73
    assert allocator("pool", "rm", name, "--force").code == 2
    done = allocator("pool", "rm", name, "--force", "--reason", "not used")
    assert (done.code, "1 lease ended" in done.err) == (0, True)
    assert name not in allocator("pool", "ls").out
    assert allocator("pool", "rm", name).code == 78


def test_it_is_asked_back_at_a_terminal_unless_yes(allocator, ports, elsewhere) -> None:
    elsewhere.claim("email", org="org-1", ttl="1h")
    arguments = ["release", "org-1/email", "--force", "--reason", "burnt"]
    status, shown = at_a_terminal(allocator, "n", *arguments)
    assert status == 1
    assert "End the lease of org-1/email#0 on web-7:" in shown
    assert "nothing was changed" in shown
    assert len(ports.leases()) == 1
    assert at_a_terminal(allocator, "y", *arguments)[0] == 0
    elsewhere.claim("slack", org="org-1", ttl="1h")
    status, shown = at_a_terminal(allocator, "n", "host", "forget", "web-7", "--force", "--reason", "x", "--yes")
    assert (status, "?" in shown) == (0, False)
    assert ports.leases() == []
