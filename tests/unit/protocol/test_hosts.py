"""Hosts as a whole: drained, forgotten, and chosen for a worker that has none of its own."""

from __future__ import annotations

from dataclasses import replace

import pytest
from scripted_redis import MINUTE, SECOND, claim, make_context

from allocator.model.errors import (
    CordonedError,
    ExhaustedError,
    HeldError,
    InvalidInputError,
    NoWorkerError,
    PoolMissingError,
)
from allocator.model.names import WorkerId
from allocator.model.pools import PoolSpec
from allocator.model.states import LeaseState
from allocator.operations.attempt import ClaimRequest
from allocator.operations.context import read_pool
from allocator.operations.end import Forced, release
from allocator.operations.hosts import drain, forget, place, register, remove_pool
from allocator.operations.listing import cordon, hosts, leases
from allocator.operations.pools import apply_pool
from allocator.operations.renew import renew
from allocator.operations.resolve import resolve
from allocator.protocol.keys import lease_key

POOL = "p"


@pytest.fixture(params=["host", "fleet"])
def scope(request, store):
    store.drive(apply_pool(PoolSpec(name=POOL, first=7001, last=7040, scope=request.param)))
    return request.param


@pytest.fixture
def host_scope(store):
    store.drive(apply_pool(PoolSpec(name=POOL, first=7001, last=7009)))


def take(store, number, host="web-1", *, org="org-1", plugin="email", state=LeaseState.READY):
    context = make_context(host, machine=f"m-{host}")
    return context, store.drive(
        claim(context, ClaimRequest(pool=POOL, worker=WorkerId(org, plugin, number), state=state))
    )


def states(store, host=None):
    return [str(lease.state) for lease in store.drive(leases(POOL, host))]


def test_a_drained_host_gives_out_no_port_and_nobody_is_sent_to_it(store, scope):
    context, lease = take(store, 0)
    take(store, 1)
    _, other = take(store, 2, "web-2")
    assert store.drive(drain(POOL, "web-1")) == 2
    assert states(store, "web-1") == ["draining", "draining"]
    assert {store.drive(resolve(make_context(), POOL, "email", "org-1")).port for _ in range(3)} == {other.port}
    with pytest.raises(CordonedError):
        take(store, 9)
    assert [host.condition for host in store.drive(hosts(POOL))] == ["draining", "open"]
    assert store.drive(renew(context, [lease]))[0].lost is None
    assert store.event_types(POOL)[-3:] == ["draining", "changed", "changed"]


def test_draining_twice_changes_nothing_more_and_uncordon_takes_the_host_back(store, scope):
    context, lease = take(store, 0)
    store.drive(drain(POOL, "web-1"))
    before = store.event_types(POOL)
    assert store.drive(drain(POOL, "web-1")) == 0
    assert store.event_types(POOL) == before
    store.drive(release(context, [lease]))
    assert store.drive(hosts(POOL))[0].condition == "drained"
    assert store.drive(cordon(POOL, "web-1", on=False))
    assert store.drive(hosts(POOL))[0].condition == "open"
    take(store, 1)


def test_a_drain_keeps_the_time_that_a_lease_has_left(store, scope):
    _, lease = take(store, 0)
    store.advance(20 * SECOND)
    store.drive(drain(POOL, "web-1"))
    (after,) = store.drive(leases(POOL))
    assert abs(after.expires_at - store.now_ms() / 1_000 - 10) < 5
    assert replace(after, state=lease.state, expires_at=0) == replace(lease, expires_at=0, granted_at=after.granted_at)
    store.advance(40 * SECOND)
    assert states(store) == []


def test_a_host_with_more_leases_than_one_call_takes_is_drained_in_full(store):
    store.drive(apply_pool(PoolSpec(name=POOL, first=7001, last=7999)))
    for number in range(300):
        take(store, number)
    assert store.drive(drain(POOL, "web-1")) == 300
    with pytest.raises(NoWorkerError, match="of its 300 workers 300 draining"):
        store.drive(resolve(make_context(), POOL, "email", "org-1"))


def test_an_unknown_host_is_named(store, scope):
    for operation in (drain(POOL, "nowhere"), forget(POOL, "nowhere"), cordon(POOL, "nowhere", on=True)):
        with pytest.raises(InvalidInputError, match="host nowhere is not known in pool p; see 'allocator host ls'"):
            store.drive(operation)


def test_a_host_with_live_leases_is_not_forgotten(store, scope):
    context, lease = take(store, 0)
    with pytest.raises(HeldError, match="host web-1 has live leases in pool p"):
        store.drive(forget(POOL, "web-1"))
    store.drive(release(context, [lease]))
    store.drive(forget(POOL, "web-1"))
    assert [host.name for host in store.drive(hosts(POOL))] == []
    kept = [key for key in store.key_names() if ":web-1" in key and store.client.pttl(key) == -1]
    assert kept == []
    assert take(store, 0)[1].port == 7001


def test_leases_that_ended_unseen_are_closed_before_their_host_is_forgotten(store, scope):
    for number in range(3):
        take(store, number)
    store.advance(MINUTE)
    store.drive(forget(POOL, "web-1"))
    if scope == "host":
        assert store.event_types(POOL)[-4:] == ["expired"] * 3 + ["forgotten"]
    store.drive(register(make_context("web-1", machine="another"), POOL))
    assert [(host.name, host.machine) for host in store.drive(hosts(POOL))] == [("web-1", "another")]


def test_a_worker_is_placed_on_the_host_with_most_free_ports(store, host_scope):
    for host, count in (("web-1", 3), ("web-2", 1), ("web-3", 2)):
        for number in range(count):
            take(store, 10 * count + number, host)
    assert store.drive(place(POOL, WorkerId("o", "p"))).host == "web-2"
    assert store.drive(place(POOL, WorkerId("o", "p"))).free == 8
    assert store.drive(place(POOL, WorkerId("o", "p"), without=frozenset({"web-2"}))).host == "web-3"
    store.drive(cordon(POOL, "web-2", on=True))
    assert store.drive(place(POOL, WorkerId("o", "p"))).host == "web-3"
    store.drive(register(make_context("web-9"), POOL))
    assert store.drive(place(POOL, WorkerId("o", "p"))).host == "web-9"


def test_spreading_looks_first_at_workers_of_the_same_kind(store, host_scope):
    take(store, 0, "web-1", org="a", plugin="email")
    for number in range(3):
        take(store, number, "web-2", org="b", plugin="stripe")
    assert store.drive(place(POOL, WorkerId("a", "x"), spread="org")).host == "web-2"
    assert store.drive(place(POOL, WorkerId("x", "email"), spread="plugin")).host == "web-2"
    assert store.drive(place(POOL, WorkerId("b", "x"), spread="org")).host == "web-1"
    assert store.drive(place(POOL, WorkerId("x", "stripe"), spread="plugin")).host == "web-1"
    with pytest.raises(InvalidInputError, match="cannot be spread"):
        store.drive(place(POOL, WorkerId("a", "x"), spread="host"))


def test_in_fleet_scope_the_host_with_fewest_leases_is_chosen(store):
    store.drive(apply_pool(PoolSpec(name=POOL, first=7001, last=7009, scope="fleet")))
    take(store, 0, "web-1")
    take(store, 1, "web-1")
    take(store, 2, "web-2", org="org-2")
    assert store.drive(place(POOL, WorkerId("x", "y"))).host == "web-2"
    assert store.drive(place(POOL, WorkerId("org-2", "y"), spread="org")).host == "web-1"


def test_where_no_host_has_a_free_port_it_is_reported(store, host_scope):
    with pytest.raises(ExhaustedError, match="no host of pool p gives out ports; make one known"):
        store.drive(place(POOL, WorkerId("x", "y")))
    for number in range(9):
        take(store, number)
    with pytest.raises(ExhaustedError, match="none of the 1 hosts of pool p that give out ports has a free one"):
        store.drive(place(POOL, WorkerId("x", "y")))


def test_placement_reads_any_number_of_hosts_whatever_their_names(store, host_scope):
    for number in range(130):
        take(store, number, f"web-{number:03}")
    store.drive(register(make_context("none"), POOL))
    assert store.drive(place(POOL, WorkerId("x", "y"))).host == "none"
    context, lease = take(store, 900, "zz")
    store.drive(release(context, [lease]))
    store.advance(2 * SECOND)
    assert store.drive(place(POOL, WorkerId("x", "y"), without=frozenset({"none"}))).host == "zz"


def test_a_renewal_on_a_draining_host_reports_it_and_cannot_undo_it(store, scope):
    context, lease = take(store, 0)
    assert store.drive(renew(context, [lease]))[0].draining is False
    store.drive(drain(POOL, "web-1"))
    assert store.drive(renew(context, [lease]))[0].draining is True
    (outcome,) = store.drive(renew(context, [replace(lease, state=LeaseState.READY)], rewrite=True))
    assert outcome.draining
    assert states(store) == ["draining"]


def test_an_address_that_was_chosen_stays_until_another_is_chosen(store, scope):
    def address():
        return store.drive(hosts(POOL))[0].address

    context = make_context()
    context.address = "10.0.0.1"
    store.drive(claim(context, ClaimRequest(pool=POOL, worker=WorkerId("o", "p", 0))))
    assert address() == "10.0.0.1"
    for number, (sent, known) in enumerate(
        [("10.0.0.2", "10.0.0.2"), ("!10.0.0.3", "10.0.0.3"), ("10.0.0.4", "10.0.0.3"), ("", "10.0.0.3"),
         ("!10.0.0.5", "10.0.0.5")], 1
    ):  # fmt: skip
        context.address = sent
        store.drive(claim(context, ClaimRequest(pool=POOL, worker=WorkerId("o", "p", number))))
        assert address() == known


def test_a_forced_forget_ends_what_is_left_and_a_holder_that_lives_learns_it(store, scope):
    context, lease = take(store, 0)
    take(store, 1)
    _, other = take(store, 2, "web-2")
    assert store.drive(forget(POOL, "web-1", forced=Forced("ann", "burnt"))) == 2
    assert [one.worker for one in store.drive(leases(POOL))] == [other.worker]
    assert [one.name for one in store.drive(hosts(POOL))] == ["web-2"]
    (outcome,) = store.drive(renew(context, [lease]))
    assert "was ended by an operator" in str(outcome.lost)
    ended = [one for one in store.events(POOL) if one["type"] in {"released", "forgotten"}]
    assert [(one["by"], one["reason"]) for one in ended] == [("ann", "burnt")] * 3


def test_what_is_known_of_a_forgotten_host_goes_in_time_and_stays_when_it_is_back(store, host_scope):
    take(store, 0)
    store.drive(forget(POOL, "web-1", forced=Forced("ann", "burnt")))
    tokens = f"alloc:{{{POOL}}}:tokens:web-1"
    assert store.client.pttl(tokens) > MINUTE
    take(store, 0)
    assert store.client.pttl(tokens) == -1


def test_a_pool_is_removed_when_it_has_no_lease(store, scope):
    take(store, 0)
    take(store, 1, "web-2")
    with pytest.raises(HeldError, match="--force --reason"):
        store.drive(remove_pool(POOL, by="ann"))
    assert len(states(store)) == 2
    assert store.drive(remove_pool(POOL, by="ann", forced=Forced("ann", "not used"))) == 2
    assert store.drive(read_pool(POOL)) is None
    last = store.events(POOL)[-1]
    assert (last["type"], last["by"], last["reason"]) == ("removed", "ann", "not used")
    assert not [key for key in store.client.scan_iter("*") if store.client.pttl(key) == -1]
    with pytest.raises(PoolMissingError):
        store.drive(remove_pool(POOL, by="ann"))


def test_a_holder_in_a_removed_pool_stops_and_does_not_define_it_again(store, scope):
    context, lease = take(store, 0)
    store.drive(remove_pool(POOL, by="ann", forced=Forced("ann", "not used")))
    for rewrite in (False, True):
        (outcome,) = store.drive(renew(context, [lease], rewrite=rewrite))
        assert "was ended by an operator" in str(outcome.lost)
    assert store.drive(read_pool(POOL)) is None
    with pytest.raises(PoolMissingError):
        store.drive(claim(context, ClaimRequest(pool=POOL, worker=WorkerId("org-1", "email"))))
    store.drive(apply_pool(PoolSpec(name=POOL, first=7001, last=7040, scope=scope)))
    (outcome,) = store.drive(renew(context, [lease]))
    assert "was ended by an operator" in str(outcome.lost)
    take(store, 0)
    assert "removed" not in str(store.client.keys("*"))


def test_a_drain_that_is_undone_between_two_renewals_leaves_every_lease_as_it_was(store, scope):
    context, lease = take(store, 0)
    take(store, 1, state=LeaseState.DEGRADED)
    take(store, 2, "web-2", state=LeaseState.DRAINING)
    store.drive(drain(POOL, "web-1"))
    assert store.drive(cordon(POOL, "web-1", on=False))
    assert states(store) == ["ready", "degraded", "draining"]
    assert store.drive(resolve(make_context(), POOL, "email", "org-1")).port == lease.port
    assert store.event_types(POOL)[-3:] == ["uncordoned", "changed", "changed"]
    (outcome,) = store.drive(renew(context, [lease]))
    assert (outcome.lost, outcome.draining) == (None, False)
    assert b"was" not in store.client.get(lease_key(POOL, "*" if scope == "fleet" else "web-1", lease.port))


def test_a_holder_that_has_seen_a_drain_states_itself_what_its_lease_is(store, scope):
    context, lease = take(store, 0)
    store.drive(drain(POOL, "web-1"))
    assert store.drive(renew(context, [lease], rewrite=True))[0].draining
    store.drive(cordon(POOL, "web-1", on=False))
    assert states(store) == ["draining"]
    store.drive(renew(context, [lease], rewrite=True))
    assert states(store) == ["ready"]
