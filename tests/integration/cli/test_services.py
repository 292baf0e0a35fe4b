"""What a person gets from `resolve` and from `host`."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from scripted_redis import claim

from allocator import AsyncPortAllocator, ExhaustedError, LeaseState, PoolSpec, PortAllocator
from allocator.operations.attempt import ClaimRequest

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Allocator


def ready(ports: PortAllocator, instance: int, org: str = "org-1") -> int:
    asked = ports.session.request("email", {"org": org, "instance": instance})
    request = ClaimRequest(pool=asked.pool, worker=asked.worker, state=LeaseState.READY)
    return ports.run(claim(ports.session.context, request)).port


def test_resolve_prints_each_address_in_turn_and_all_of_them(allocator: Allocator, ports: PortAllocator) -> None:
    found = {ready(ports, number) for number in range(3)}
    assert allocator("host", "register", "--advertise", "10.1.2.3").code == 0
    turns = [allocator("resolve", "email", "--org", "org-1").out.strip() for _ in range(3)]
    assert sorted(turns) == sorted(f"10.1.2.3:{port}" for port in found)
    assert allocator("resolve", "email", "--org", "org-1", "--all").out.split() == sorted(turns)
    listed = json.loads(allocator("resolve", "email", "--org", "org-1", "--all", "--format", "json").out)
    assert {one["port"] for one in listed} == found
    one = json.loads(allocator("resolve", "email", "--org", "org-1", "--prefer-local", "--format", "json").out)
    assert one.keys() == {"address", "port", "host", "org", "plugin", "instance", "fence"}


def test_resolve_exits_75_with_the_reason(allocator: Allocator, ports: PortAllocator) -> None:
    nobody = allocator("resolve", "email", "--org", "org-1")
    assert (nobody.code, nobody.out) == (75, "")
    assert "no worker of org-1/email has a lease" in nobody.err
    ports.claim("email", org="org-1")
    for arguments in ([], ["--all"], ["--wait", "50ms"]):
        starting = allocator("resolve", "email", "--org", "org-1", *arguments)
        assert starting.code == 75
        assert "its only worker is starting" in starting.err


@pytest.mark.parametrize("name", ["*", "e[m]ail", "a\nb", "a\x1bb", "a b", "../x"])
def test_a_name_with_wildcards_or_control_characters_is_refused_in_one_line(allocator: Allocator, name: str) -> None:
    for arguments in (("resolve", name, "--org", "o"), ("resolve", "email", "--org", name), ("host", "drain", name)):
        refused = allocator(*arguments)
        assert refused.code == 2
        assert refused.err.count("\n") == 1
        assert refused.err.strip().isprintable()


@pytest.mark.parametrize(
    "arguments",
    [("--watch", "--all"), ("--watch", "--wait", "1s"), ("--all", "--prefer-local"), ("--wait", "soon")],
)
def test_choices_of_resolve_that_contradict_each_other_are_refused(
    allocator: Allocator, arguments: tuple[str, ...]
) -> None:
    assert allocator("resolve", "email", "--org", "o", *arguments).code == 2


def test_watch_prints_a_line_for_each_change_at_once_into_a_pipe(allocator: Allocator, ports: PortAllocator) -> None:
    port = ready(ports, 0)
    arguments = [sys.executable, "-m", "allocator", "resolve", "email", "--org", "org-1", "--watch", "--format", "json"]
    process = subprocess.Popen(arguments, env=allocator.environment(), stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        first = json.loads(process.stdout.readline())
        assert (first["change"], first["port"]) == ("up", port)
        second = ready(ports, 1)
        assert json.loads(process.stdout.readline())["port"] == second
    finally:
        process.terminate()
        process.communicate()


def test_a_host_is_drained_listed_forgotten_and_taken_back(allocator: Allocator, ports: PortAllocator) -> None:
    leases = [ports.claim("email", org=f"org-{number}") for number in range(2)]
    late = allocator("host", "drain", "web-1", "--timeout", "100ms")
    assert late.code == 75
    assert "still has 2 leases" in late.err
    (row,) = json.loads(allocator("host", "ls", "--format", "json").out)
    assert (row["state"], row["leases"]) == ("draining", 2)
    refused = allocator("claim", "email", "--org", "org-9")
    assert refused.code == 75
    assert "host uncordon web-1" in refused.err
    assert allocator("host", "forget", "web-1").code == 73
    for lease in leases:
        ports.release(lease)
    empty = allocator("host", "drain", "web-1")
    assert (empty.code, "host web-1 is empty" in empty.err) == (0, True)
    assert "drained" in allocator("host", "show", "web-1").out
    assert allocator("host", "uncordon", "web-1").code == 0
    assert allocator("claim", "email", "--org", "org-9").code == 0
    assert allocator("release", "--all").code == 0
    assert allocator("host", "forget", "web-1").code == 0
    assert allocator("host", "show", "web-1").code == 2


def test_a_drain_reports_when_the_host_is_empty(allocator: Allocator, ports: PortAllocator) -> None:
    lease = ports.claim("email", org="org-1")
    arguments = [sys.executable, "-m", "allocator", "host", "drain", "web-1"]
    process = subprocess.Popen(arguments, env=allocator.environment(), stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert process.stderr.readline() == "allocator: host web-1 is draining: 1 lease\n"
    ports.release(lease)
    _, err = process.communicate(timeout=30)
    assert err == "allocator: host web-1 is empty\n"
    assert process.returncode == 0


@pytest.mark.parametrize("address", ["10.0.0.5:80", "a b", "fe80::1%eth0", "", "x" * 200])
def test_an_address_that_nobody_can_use_is_refused(allocator: Allocator, address: str) -> None:
    refused = allocator("host", "register", "--advertise", address)
    assert refused.code == 2
    assert "is not an address" in refused.err


def test_a_drain_stops_the_workers_that_a_supervisor_runs(allocator: Allocator, ports: PortAllocator) -> None:
    arguments = ["run", "email", "--org", "org-1", "--ttl", "1s", "--", "sleep", "600"]
    process = subprocess.Popen(
        [sys.executable, "-m", "allocator", *arguments], env=allocator.environment(), stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    assert "runs on web-1" in process.stderr.readline()
    drained = allocator("host", "drain", "web-1", "--timeout", "30s")
    assert (drained.code, "host web-1 is empty" in drained.err) == (0, True)
    _, err = process.communicate(timeout=30)
    assert "host web-1 is draining" in err
    assert process.returncode == 128 + 15


def test_any_host_chooses_the_registered_host_with_most_free_ports(allocator: Allocator, ports: PortAllocator) -> None:
    nowhere = allocator("claim", "email", "--org", "o", "--any-host")
    assert (nowhere.code, "host register" in nowhere.err) == (75, True)
    for host in ("web-2", "web-3"):
        assert allocator("host", "register", "--host", host).code == 0
    ports.claim("email", org="org-1")
    first = allocator("claim", "email", "--org", "o", "--any-host")
    assert first.out.startswith("web-2:")
    assert allocator("claim", "email", "--org", "o", "--any-host").out == first.out
    other = allocator("claim", "email", "--org", "o", "--instance", "1", "--any-host", "--spread", "org")
    assert other.out.startswith("web-1:") or other.out.startswith("web-3:")
    assert allocator("release", "o/email", "--host", "web-2").code == 0
    assert ports.claim_anywhere("stripe", org="o").host in {"web-2", "web-3"}


def test_any_host_goes_on_to_the_next_where_all_ports_of_the_best_one_rest(
    allocator: Allocator, ports: PortAllocator, pool: PoolSpec, redis_url: str
) -> None:
    ports.apply_pool(replace(pool, last=pool.first + 1, cooldown_ms=600_000))
    for host in ("web-2", "web-3", "web-4"):
        assert allocator("host", "register", "--host", host).code == 0
    there = ports.for_host("web-2")
    there.release_all(*[there.claim("stripe", org="org-1", instance=number) for number in range(2)])
    assert allocator("claim", "email", "--org", "o", "--any-host").out.startswith("web-3:")
    assert ports.claim_anywhere("email", org="o", instance=1).host == "web-4"

    async def claim_two() -> list[str]:
        async with AsyncPortAllocator.from_url(redis_url, pool=pool.name, host="web-1") as others:
            found = [(await others.claim_anywhere("email", org="o", instance=number)).host for number in (2, 3)]
            with pytest.raises(ExhaustedError):
                await others.claim_anywhere("email", org="o", instance=4)
            return found

    assert sorted(asyncio.run(claim_two())) == ["web-3", "web-4"]


def test_workers_without_a_number_are_spread_over_hosts(allocator: Allocator) -> None:
    for host in ("ha", "hb", "hc"):
        assert allocator("host", "register", "--host", host).code == 0
    arguments = ("claim", "email", "--org", "o", "--instance", "auto", "--any-host", "--spread", "org")
    assert {allocator(*arguments).out.partition(":")[0] for _ in range(3)} == {"ha", "hb", "hc"}


@pytest.mark.parametrize("arguments", [("resolve", "email", "--org", "o"), ("export", "json")])
def test_a_pool_that_does_not_exist_is_not_taken_for_an_empty_one(
    allocator: Allocator, arguments: tuple[str, ...]
) -> None:
    done = allocator(*arguments, "--pool", "typo")
    assert (done.code, done.out) == (78, "")
    assert "pool typo is not defined" in done.err


@pytest.mark.parametrize(
    "arguments", [("--spread", "org"), ("--any-host", "--host", "a"), ("--any-host", "--spread", "x")]
)
def test_placing_options_that_contradict_each_other_are_refused(
    allocator: Allocator, arguments: tuple[str, ...]
) -> None:
    assert allocator("claim", "email", "--org", "o", *arguments).code == 2


def test_an_instance_or_a_priority_that_is_none_is_refused(allocator: Allocator) -> None:
    for wrong in (("--instance", "next"), ("--priority", "10"), ("--priority", "-1"), ("--priority", "x")):
        assert allocator("claim", "email", "--org", "o", *wrong).code == 2


def test_a_limit_that_is_reached_is_named_with_its_holders(
    allocator: Allocator, tmp_path: Path, pool: PoolSpec
) -> None:
    file = tmp_path / "pool.toml"
    file.write_text(allocator("pool", "show", pool.name).out + "\n[pool.limits]\nmax_per_org = 1\n")
    assert allocator("pool", "apply", str(file)).code == 0
    assert "max_per_org = 1" in allocator("pool", "show", pool.name).out
    assert allocator("claim", "email", "--org", "o").code == 0
    refused = allocator("claim", "stripe", "--org", "o")
    assert refused.code == 75
    assert "organisation o may have 1 leases, and there are 1 (o/email#0)" in refused.err


def test_several_ports_are_claimed_and_released_together(allocator: Allocator) -> None:
    arguments = ("claim", "email", "--org", "o", "--ports", "http,debug,metrics", "--contiguous")
    first = allocator(*arguments)
    assert first.code == 0
    ports = dict(line.split("=") for line in first.out.splitlines())
    assert list(ports) == ["http", "debug", "metrics"]
    numbers = [int(port) for port in ports.values()]
    assert numbers == list(range(numbers[0], numbers[0] + 3))
    assert allocator(*arguments).out == first.out
    shell = allocator(*arguments, "--format", "env").out
    assert f"PORT={ports['http']}\n" in shell
    assert f"PORT_DEBUG={ports['debug']}\n" in shell
    assert set(json.loads(allocator(*arguments, "--format", "json").out)) == set(ports)
    assert allocator("renew", "o/email").code == 0
    debugging = allocator("resolve", "email+debug", "--org", "o")
    assert (debugging.code, "its only worker is starting" in debugging.err) == (75, True)
    assert allocator("release", ports["http"]).code == 0
    assert json.loads(allocator("ls", "--format", "json").out) == []
    for wrong in (("--ports", ""), ("--ports", "a,a"), ("--contiguous",), ("--ports", "a", "--port", "5556")):
        assert allocator("claim", "email", "--org", "o", *wrong).code == 2
