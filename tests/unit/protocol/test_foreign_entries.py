"""What another program wrote under our prefix: readers pass it over, turns go on, and it is named."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from scripted_redis import claim, make_context

from allocator import protocol
from allocator.model.names import WorkerId
from allocator.model.states import LeaseState
from allocator.operations import listing
from allocator.operations.attempt import ClaimRequest
from allocator.operations.foreign import strange_entries, strange_keys
from allocator.operations.hosts import register
from allocator.operations.resolve import endpoints, resolve

POOL, SERVICE = "sdk-v2", "alloc:{sdk-v2}:service:email:org-1"
CONTEXT = make_context()
MEMBERS = ["made-up", "web-1", "web-1:", ":1", "a b:1", "web-1:5556:7", "\n", "", "{x}:1", "x" * 5_000]
ADDRESSES = ["$(touch${IFS}/tmp/x)", "10.0.0.5;", "`id`", "\x1b[2J", "a/b", "1.2.3.4:80", "fe80::1%eth0", "é"]


def worker(store, number, **asked):
    request = ClaimRequest(pool=POOL, worker=WorkerId("org-1", "email", number), state=LeaseState.READY, **asked)
    return store.drive(claim(make_context(), request))


def turns(store, count):
    return Counter(store.drive(resolve(CONTEXT, POOL, "email", "org-1")).port for _ in range(count))


def named(store):
    return store.drive(strange_entries(POOL, sorted(store.key_names())))


def test_each_key_of_the_table_of_keys_is_known():
    table = (Path(protocol.__file__).parent / "lua/README.md").read_text()
    kinds = re.findall(r"^\| `alloc:\{p\}:([a-z]+)", table, re.MULTILINE)
    assert len(kinds) > 15
    keys = [f"alloc:{{sdk-v2}}:{kind}:a" for kind in kinds if kind != "absent"]
    assert strange_keys(["alloc:{sdk-v2}", *keys, "alloc:{sdk-v2}:other:a"]) == ["alloc:{sdk-v2}:other:a"]


@pytest.mark.parametrize("member", MEMBERS)
def test_a_made_up_member_of_a_service_is_passed_over_and_named(store, member):
    ports = {worker(store, number).port for number in range(3)}
    store.client.zadd(SERVICE, {member: -1})
    assert set(turns(store, 6).values()) == {2}
    assert {one.port for one in store.drive(endpoints(POOL, "email", "org-1"))} == ports
    (sentence,) = named(store)
    assert sentence.startswith(f"key {SERVICE} has the member ")
    assert sentence.isprintable()
    assert len(sentence) < 200


@pytest.mark.parametrize("score", ["inf", "1e300", "9.1e15"])
def test_an_impossible_score_does_not_end_the_turns(store, score):
    leases = [worker(store, number) for number in range(3)]
    store.client.zadd(SERVICE, {f"web-1:{leases[0].port}": score, f"web-1:{leases[1].port}": score})
    assert len(named(store)) == 2
    assert set(turns(store, 9).values()) == {3}
    assert named(store) == []


def test_a_garbled_lease_costs_the_others_nothing_and_is_named(store):
    leases = [worker(store, number) for number in range(3)]
    key = f"alloc:{{sdk-v2}}:lease:web-1:{leases[1].port}"
    store.client.set(key, "\x1b[31mnot a lease\n")
    others = [leases[0].port, leases[2].port]
    assert [one.port for one in store.drive(listing.leases(POOL))] == others
    assert [one.port for one in store.drive(endpoints(POOL, "email", "org-1"))] == others
    assert store.drive(listing.hosts(POOL))[0].leases == 2
    (sentence,) = named(store)
    assert sentence.startswith(f"key {key} holds ")
    assert sentence.isprintable()


def test_a_made_up_port_is_passed_over_and_named(store):
    port = worker(store, 0).port
    store.client.zadd("alloc:{sdk-v2}:ports:web-1", {"\x1b[2J": 2 * 10**12, "70000": 2 * 10**12})
    assert [one.port for one in store.drive(listing.leases(POOL))] == [port]
    assert sum("which is not a port" in sentence for sentence in named(store)) == 2


def test_a_made_up_host_is_passed_over_and_named(store):
    worker(store, 0)
    store.client.zadd("alloc:{sdk-v2}:hosts", {"$(reboot)": 1, "web 2": 2})
    assert [one.name for one in store.drive(listing.hosts(POOL))] == ["web-1"]
    assert sum("which is not a host" in sentence for sentence in named(store)) == 2


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_address_that_is_none_is_not_used_and_named(store, address):
    port = worker(store, 0).port
    identity = f"{store.client.hget('alloc:{sdk-v2}:host:web-1', 'identity').decode()} {address}"
    store.client.hset("alloc:{sdk-v2}:host:web-1", "identity", identity)
    assert str(store.drive(resolve(CONTEXT, POOL, "email", "org-1"))) == f"web-1:{port}"
    assert [one.address for one in store.drive(endpoints(POOL, "email", "org-1"))] == ["web-1"]
    assert store.drive(listing.hosts(POOL))[0].address == ""
    (sentence,) = named(store)
    assert "which is not an address" in sentence
    assert sentence.isprintable()


def test_what_a_host_is_known_by_is_one_line_of_bounded_length(store):
    worker(store, 0)
    store.client.hset("alloc:{sdk-v2}:host:web-1", "identity", "x\x1b[31m\n" + "y" * 100_000)
    (host,) = store.drive(listing.hosts(POOL))
    assert host.machine.isprintable()
    assert len(host.machine) <= 500


def test_keys_that_no_script_writes_are_named(store):
    worker(store, 0)
    store.drive(register(make_context("web-2"), POOL))
    assert strange_keys(sorted(store.key_names())) == []
    odd = ["alloc:{a b}", "alloc:{}", "alloc:x", "alloc:{sdk-v2}:elsewhere:1", "alloc:{sdk-v2}x", "alloc:{\n}:hosts"]
    assert strange_keys(odd) == odd
