"""Pools as data in Redis, and what `ls`, `host` and `pool` read from it, page by page."""

from __future__ import annotations

import pytest
from scripted_redis import MINUTE, SECOND, claim, make_context

from allocator.model.errors import HeldError
from allocator.model.names import WorkerId
from allocator.model.pools import SDK_V2, PoolSpec
from allocator.operations.attempt import ClaimRequest
from allocator.operations.context import define_pool, read_pool
from allocator.operations.end import decline, release
from allocator.operations.listing import hosts, leases, namespaces, newest_event, port_view, ports
from allocator.operations.pools import apply_pool
from allocator.operations.renew import renew
from allocator.protocol.replies import Reply


def take(store, context, worker, pool="p", **asked):
    return store.drive(claim(context, ClaimRequest(pool=pool, worker=worker, **asked)))


def worker(number):
    return WorkerId("org", "plugin", number)


def rules(**changed):
    return PoolSpec(**{"name": "p", "first": 7001, "last": 7009, **changed})


def version(store):
    return int(store.client.hget("alloc:{p}", "version"))


def test_applying_states_created_changed_unchanged(store):
    assert store.drive(apply_pool(rules())) is Reply.CREATED
    assert store.drive(apply_pool(rules())) is Reply.UNCHANGED
    assert version(store) == 1
    assert store.drive(apply_pool(rules(last=7010))) is Reply.CHANGED
    assert version(store) == 2
    assert store.event_types("p") == ["pool", "pool"]


def test_a_port_is_in_quarantine_for_no_longer_than_it_rests_for_that(store):
    store.drive(apply_pool(rules()))
    context = make_context()

    def reasons():
        return [view.why for view in store.drive(ports("p", "web-1", quarantine=True))]

    store.drive(decline(context, [take(store, context, worker(0), port=7003)]))
    assert reasons() == ["quarantined"]
    assert [view.why for view in store.drive(ports("p", "web-1"))] == ["cooling"]
    store.advance(6 * SECOND)
    assert reasons() == []
    lease = take(store, context, worker(1), port=7003)
    assert reasons() == ["leased"]
    store.drive(release(context, [lease]))
    assert reasons() == ["cooling"]


def test_creating_only_leaves_a_pool_that_is_there(store):
    store.drive(apply_pool(rules(last=7010)))
    assert store.drive(define_pool(rules(), "create")) is Reply.UNCHANGED
    assert store.drive(read_pool("p")).last == 7010


@pytest.mark.parametrize(
    "pool",
    [
        SDK_V2,
        PoolSpec(name="all", first=1, last=65535, scope="fleet", spill=False, cooldown_ms=0, grace_ms=0),
        PoolSpec(name="one", first=9, last=9, conventional={"a": (9,)}),
        PoolSpec(name="edges", first=1, last=9, conventional={"a": (1, 9), "b": (5,)}),
    ],
    ids=lambda pool: pool.name,
)
def test_a_pool_reads_back_as_it_was_applied(store, pool):
    store.drive(apply_pool(pool))
    assert store.drive(read_pool(pool.name)) == pool


def test_a_plugin_that_left_the_pool_leaves_no_field(store):
    store.drive(apply_pool(rules(conventional={"a": (7001,), "b": (7002,)})))
    store.drive(apply_pool(rules(conventional={"b": (7001,)})))
    assert store.drive(read_pool("p")).conventional == {"b": (7001,)}


def test_the_largest_number_of_conventional_ports_can_be_applied(store):
    pool = rules(first=1, last=2_000, conventional={f"plugin-{i}": (i,) for i in range(1, 1_025)})
    store.drive(apply_pool(pool))
    assert store.drive(read_pool("p")) == pool
    assert take(store, make_context(), WorkerId("o", "plugin-1024")).port == 1_024
    assert take(store, make_context(), worker(0)).port == 1_025


def test_the_scope_is_fixed_once_hosts_use_the_pool(store):
    store.drive(apply_pool(rules()))
    assert store.drive(apply_pool(rules(scope="fleet"))) is Reply.CHANGED
    take(store, make_context(), worker(0))
    with pytest.raises(HeldError, match="pool p has scope fleet and hosts use it"):
        store.drive(apply_pool(rules()))
    assert store.drive(read_pool("p")).scope == "fleet"


def test_a_pool_that_grew_gives_out_the_new_ports(store):
    context = make_context()
    store.drive(apply_pool(rules(last=7002)))
    for i in range(2):
        take(store, context, worker(i))
    store.drive(apply_pool(rules(first=7000, last=7003)))
    context.rules.clear()
    assert {take(store, context, worker(i)).port for i in (2, 3)} == {7000, 7003}


def test_a_pool_that_shrank_revokes_no_lease_and_retires_the_port(store):
    context = make_context()
    store.drive(apply_pool(rules()))
    held = [take(store, context, worker(i)) for i in range(9)]
    store.drive(apply_pool(rules(last=7002)))
    assert not any(outcome.lost for outcome in store.drive(renew(context, held)))
    store.drive(release(context, held[2:]))
    store.advance(MINUTE)
    store.drive(renew(context, held[:2]))
    assert store.drive(renew(context, held[:2]))[0].lost is None
    with pytest.raises(Exception, match="no port of pool p"):
        take(store, make_context(), worker(99))


def test_a_pool_that_moved_away_starts_anew(store):
    context = make_context()
    store.drive(apply_pool(rules()))
    take(store, context, worker(0))
    store.drive(apply_pool(rules(first=8001, last=8003)))
    context.rules.clear()
    assert [take(store, context, worker(i)).port for i in (1, 2, 3)] == [8001, 8002, 8003]


def test_a_port_that_became_conventional_and_back_is_found_again(store):
    context = make_context()
    store.drive(apply_pool(rules(last=7002)))
    store.drive(release(context, [take(store, context, worker(0))]))
    store.drive(apply_pool(rules(last=7002, conventional={"x": (7001,)})))
    store.advance(MINUTE)
    assert take(store, context, worker(1)).port == 7002
    with_spill = take(store, context, worker(2))
    assert with_spill.port == 7001
    store.drive(release(context, [with_spill]))
    store.drive(apply_pool(rules(last=7002)))
    store.advance(2 * SECOND)
    assert take(store, context, worker(3)).port == 7001


# --- listing ---


def test_listings_of_nothing_are_empty(store):
    assert store.drive(leases("p")) == []
    assert store.drive(hosts("p")) == []
    assert store.drive(namespaces("p")) == []
    assert store.drive(newest_event("p")) == "0-0"
    assert store.drive(port_view("p", "web-1", 7001)).why == "free"
    assert store.key_names() == []


def test_600_leases_of_one_millisecond_are_all_listed(store):
    store.drive(apply_pool(rules(first=1, last=2_000)))
    context = make_context()
    for i in range(600):
        take(store, context, worker(i))
    key = "alloc:{p}:ports:web-1"
    same = store.now_ms() + 60_000
    store.client.zadd(key, dict.fromkeys(store.client.zrange(key, 0, -1)[:599], same))
    assert [lease.port for lease in store.drive(leases("p"))] == list(range(1, 601))


def test_a_port_is_leased_cooling_or_free(store):
    context = make_context()
    store.drive(apply_pool(rules()))
    one, two = take(store, context, worker(0)), take(store, context, worker(1))
    store.drive(release(context, [two]))
    assert {view.port: view.why for view in store.drive(ports("p", "web-1"))} == {7001: "leased", 7002: "cooling"}
    view = store.drive(port_view("p", "web-1", one.port))
    assert (view.why, view.lease.worker) == ("leased", worker(0))
    store.advance(2 * SECOND)
    assert store.drive(port_view("p", "web-1", two.port)).why == "free"


def test_leases_of_one_host_and_of_an_unknown_one(store):
    for i in range(3):
        take(store, make_context(f"web-{i}", machine=f"m{i}"), WorkerId("o", "email", i), "sdk-v2")
    assert [lease.host for lease in store.drive(leases("sdk-v2"))] == ["web-0", "web-1", "web-2"]
    assert [lease.host for lease in store.drive(leases("sdk-v2", "web-1"))] == ["web-1"]
    assert store.drive(leases("sdk-v2", "nowhere")) == []
    assert [(host.name, host.machine, host.leases) for host in store.drive(hosts("sdk-v2"))] == [
        ("web-0", "m0", 1), ("web-1", "m1", 1), ("web-2", "m2", 1),
    ]  # fmt: skip


def test_no_listing_and_no_event_shows_a_token(store):
    context = make_context()
    lease = take(store, context, WorkerId("o", "email"), "sdk-v2")
    shown = repr((store.drive(leases("sdk-v2")), store.events("sdk-v2"), lease))
    assert lease.token not in shown
    for key in store.key_names():
        if store.client.type(key) == b"string":
            assert lease.token.encode() not in store.client.get(key)
