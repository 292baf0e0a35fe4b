"""`ls`, `events` and what a shell completes: the rows that were asked for, in the order that was asked for."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from allocator import PortAllocator
from allocator.model.states import LeaseState

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import Allocator

    from allocator import PoolSpec


@pytest.fixture
def elsewhere(redis_url: str, pool: PoolSpec) -> Iterator[PortAllocator]:
    with PortAllocator.from_url(redis_url, pool=pool.name, host="web-7") as found:
        yield found


def rows(allocator: Allocator, *arguments: str) -> list[tuple[str, str]]:
    done = allocator("ls", "--format", "json", *arguments)
    assert done.code == 0, done.err
    return [(lease["host"], lease["plugin"]) for lease in json.loads(done.out)]


def test_a_listing_has_the_leases_that_were_asked_for_in_order(allocator, ports: PortAllocator, elsewhere) -> None:
    ready = ports.start_heartbeats(ports.claim("stripe", org="o", ttl="10m"))
    ports.update(ready, state=LeaseState.READY)
    ports.claim("email", org="o", ttl="5m")
    elsewhere.claim("slack", org="p", ttl="1m")
    assert rows(allocator, "--state", "ready,degraded") == [("web-1", "stripe")]
    assert rows(allocator, "--state", "starting") == [("web-1", "email"), ("web-7", "slack")]
    assert rows(allocator, "--host", "web-7") == rows(allocator, "--org", "p") == [("web-7", "slack")]
    assert [plugin for _, plugin in rows(allocator, "--sort", "ends")] == ["slack", "email", "stripe"]
    assert [plugin for _, plugin in rows(allocator, "--sort", "worker")] == ["email", "stripe", "slack"]
    for arguments in (["--state", "ready,dead"], ["--sort", "age"]):
        refused = allocator("ls", *arguments)
        assert (refused.code, "choose" in refused.err) == (2, True)


def test_a_watched_listing_is_printed_again_when_it_changes(allocator, ports: PortAllocator) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "allocator", "ls", "--watch", "--format", "json"],
        env=allocator.environment(),
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert json.loads(process.stdout.readline()) == []
            lease = ports.claim("email", org="o")
            assert [one["port"] for one in json.loads(process.stdout.readline())] == [lease.port]
            ports.release(lease)
            assert json.loads(process.stdout.readline()) == []
        finally:
            process.terminate()


def test_events_are_those_that_were_asked_for(allocator, ports: PortAllocator, elsewhere) -> None:
    lease = ports.claim("email", org="o")
    ports.release(lease)
    other = elsewhere.claim("slack", org="p")

    def kinds(*arguments: str) -> list[tuple[str, str]]:
        done = allocator("events", "--format", "json", *arguments)
        assert done.code == 0, done.err
        found = [json.loads(line) for line in done.out.splitlines()]
        return [(event["type"], event["worker"]) for event in found]

    mine = [("granted", "o/email#0"), ("released", "o/email#0")]
    assert kinds("--worker", "o/email") == kinds("--port", str(lease.port), "--host", "web-1") == mine
    assert kinds("--type", "granted") == [mine[0], ("granted", "p/slack#0")]
    assert kinds("--type", "granted,released", "--count", "2") == [mine[1], ("granted", "p/slack#0")]
    assert kinds("--host", "web-7", "--since", "1h") == [("granted", str(other.worker))]
    assert kinds("--since", "0s") == []
    for arguments in (
        ["--type", "born"],
        ["--worker", "email"],
        ["--port", "x"],
        ["--since", "soon"],
        ["--count", "0"],
    ):
        assert allocator("events", *arguments).code == 2, arguments


def test_any_port_can_be_asked_about_and_a_worker_is_explained(allocator) -> None:
    done = allocator("who", "3000")
    assert (done.code, "not in the pool" in done.out) == (0, True)
    for command in ("release", "renew", "show"):
        refused = allocator(command, "b")
        assert refused.code == 2
        assert "a worker is ORG/PLUGIN" in refused.err


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("allocator release ", {"{port}", "o/email"}),
        ("allocator show o/", {"o/email"}),
        ("allocator who ", {"{port}"}),
        ("allocator host drain web", {"web-1"}),
        ("allocator ls --host ", {"web-1"}),
        ("allocator ls --pool ", {"{pool}", "sdk-v2"}),
        ("allocator events --worker ", {"o/email"}),
    ],
)
def test_a_shell_completes_hosts_pools_workers_and_leased_ports(
    allocator, ports: PortAllocator, pool: PoolSpec, typed: str, offered: set[str]
) -> None:
    lease = ports.claim("email", org="o")
    done = allocator(_ALLOCATOR_COMPLETE="complete_bash", COMP_WORDS=typed, COMP_CWORD=str(len(typed.split(" ")) - 1))
    assert {one.format(port=lease.port, pool=pool.name) for one in offered} <= set(done.out.split()), done.err
    assert done.err == ""


def test_a_shell_completes_nothing_where_there_is_no_redis(allocator) -> None:
    typed = "allocator release "
    variables = {"_ALLOCATOR_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": "2"}
    done = allocator(ALLOCATOR_REDIS_URL="redis://127.0.0.1:1/0", **variables)
    assert (done.out.strip(), done.err) == ("", "")
