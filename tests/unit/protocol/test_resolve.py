"""Resolve: strictly even turns over the ready workers, skipping those that are not, and the reason where none is."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from scripted_redis import MINUTE, SECOND, claim, error_of, make_context

from allocator.model.errors import HostConflictError, InvalidInputError, NoWorkerError
from allocator.model.names import WorkerId
from allocator.model.pools import PoolSpec
from allocator.model.states import LeaseState
from allocator.operations.attempt import ClaimRequest
from allocator.operations.end import release
from allocator.operations.hosts import register
from allocator.operations.pools import apply_pool
from allocator.operations.renew import renew
from allocator.operations.resolve import endpoints, resolve
from allocator.protocol.replies import Reply

READY, POOL = LeaseState.READY, "sdk-v2"


def worker(store, number, *, host="web-1", state=READY, org="org-1", plugin="email", pool=POOL, ttl_ms=None):
    context = make_context(host, machine=f"m-{host}")
    asked = ClaimRequest(pool=pool, worker=WorkerId(org, plugin, number), state=state, ttl_ms=ttl_ms)
    return context, store.drive(claim(context, asked))


def turns(store, count, **asked):
    return [store.drive(resolve(make_context(), POOL, "email", "org-1", **asked)) for _ in range(count)]


def set_state(store, context, lease, state):
    store.drive(renew(context, [replace(lease, state=state)], rewrite=True))


@pytest.mark.parametrize("replicas", [1, 2, 7, 70])
def test_counts_over_all_replicas_differ_by_at_most_one_at_every_moment(store, replicas):
    for number in range(replicas):
        worker(store, number, host=f"web-{number % 9}")
    counts = Counter()
    for _ in range(3 * replicas + 2):
        counts[turns(store, 1)[0].worker] += 1
        full = [counts[WorkerId("org-1", "email", number)] for number in range(replicas)]
        assert max(full) - min(full) <= 1


def test_only_ready_workers_of_this_service_are_resolved(store):
    _, ready = worker(store, 0)
    for number, state in enumerate((LeaseState.STARTING, LeaseState.DEGRADED, LeaseState.DRAINING), 1):
        worker(store, number, state=state)
    worker(store, 0, org="org-2")
    worker(store, 0, plugin="stripe")
    assert {one.port for one in turns(store, 5)} == {ready.port}
    assert [one.port for one in store.drive(endpoints(POOL, "email", "org-1"))] == [ready.port]


def test_a_worker_that_ended_or_expired_is_not_resolved(store):
    _, one = worker(store, 0, ttl_ms=10 * SECOND)
    second, other = worker(store, 1)
    store.drive(release(second, [other]))
    assert {each.port for each in turns(store, 3)} == {one.port}
    store.advance(11 * SECOND)
    with pytest.raises(NoWorkerError, match=r"no worker of org-1/email has a lease in pool sdk-v2; start one"):
        turns(store, 1)


def test_a_port_that_another_service_has_now_is_not_resolved_for_the_old_one(store):
    _, lease = worker(store, 0, ttl_ms=10 * SECOND)
    store.advance(MINUTE)
    store.client.zadd("alloc:{sdk-v2}:service:email:org-1", {f"web-1:{lease.port}": 0})
    context = make_context()
    store.drive(claim(context, ClaimRequest(pool=POOL, worker=WorkerId("o", "p"), port=lease.port, state=READY)))
    store.client.zadd("alloc:{sdk-v2}:service:email:org-1", {f"web-1:{lease.port}": 0})
    with pytest.raises(NoWorkerError):
        turns(store, 1)


@pytest.mark.parametrize(
    ("states", "printed"),
    [
        (["starting"], "its only worker is starting"),
        (["draining"], "its only worker is draining"),
        (["starting", "starting", "degraded"], "of its 3 workers 2 starting and 1 degraded"),
        (["degraded", "degraded"], "of its 2 workers 2 degraded"),
    ],
)
def test_where_none_is_ready_the_reason_is_reported_and_the_exit_code_is_75(store, states, printed):
    for number, state in enumerate(states):
        worker(store, number, state=LeaseState(state))
    error = error_of(lambda: turns(store, 1))
    assert isinstance(error, NoWorkerError)
    assert printed in str(error)
    assert error.exit_code == 75
    assert store.drive(endpoints(POOL, "email", "org-1")) == []


def test_a_worker_that_becomes_ready_joins_the_turns_and_one_that_degrades_leaves_them(store):
    first, one = worker(store, 0)
    second, other = worker(store, 1, state=LeaseState.STARTING)
    turns(store, 4)
    set_state(store, second, other, READY)
    assert Counter(each.port for each in turns(store, 4)) == {one.port: 2, other.port: 2}
    set_state(store, first, one, LeaseState.DEGRADED)
    assert {each.port for each in turns(store, 3)} == {other.port}


def test_workers_of_the_preferred_host_take_turns_among_themselves_and_others_only_where_it_has_none(store):
    far = [worker(store, number, host="web-2")[1] for number in range(3)]
    near = [worker(store, 10 + number, host="web-1") for number in range(2)]
    counts = Counter(each.port for each in turns(store, 10, prefer="web-1"))
    assert counts == {lease.port: 5 for _, lease in near}
    for context, lease in near:
        store.drive(release(context, [lease]))
    assert {each.host for each in turns(store, 3, prefer="web-1")} == {"web-2"}
    assert len(far) == 3


def test_turns_stay_even_in_fleet_scope_and_over_many_pages(store):
    store.drive(apply_pool(PoolSpec(name="wide", first=2000, last=2999, scope="fleet", ttl_ms=3_600_000)))
    for number in range(200):
        state = READY if number % 3 == 0 else LeaseState.STARTING
        worker(store, number, host=f"web-{number % 5}", pool="wide", state=state)
    found = [store.drive(resolve(make_context(), "wide", "email", "org-1")) for _ in range(134)]
    assert set(Counter(found).values()) == {2}
    listed = store.drive(endpoints("wide", "email", "org-1"))
    assert listed == sorted(set(found))
    assert len(listed) == 67


def test_a_service_of_more_workers_than_one_call_reads_is_listed_in_full(store):
    store.drive(apply_pool(PoolSpec(name="wide", first=2000, last=4999, ttl_ms=3_600_000)))
    for number in range(1_100):
        worker(store, number, pool="wide", host="web-1")
    assert len(store.drive(endpoints("wide", "email", "org-1"))) == 1_100


def test_the_address_is_the_one_that_the_host_advertises(store):
    context, lease = worker(store, 0)
    assert str(turns(store, 1)[0]) == f"web-1:{lease.port}"
    context.address = "!10.0.0.7"
    assert store.drive(register(context, POOL)) is Reply.CHANGED
    assert store.drive(register(context, POOL)) is Reply.UNCHANGED
    assert str(turns(store, 1)[0]) == f"10.0.0.7:{lease.port}"
    context.address = "!fd00::7"
    store.drive(register(context, POOL))
    assert str(turns(store, 1)[0]) == f"[fd00::7]:{lease.port}"


def test_a_host_that_registers_is_known_before_its_first_claim(store):
    context = make_context("web-9")
    assert store.drive(register(context, POOL)) is Reply.CREATED
    assert store.client.zrange("alloc:{sdk-v2}:hosts", 0, -1) == [b"web-9"]
    assert store.event_types(POOL) == ["pool", "registered"]
    worker(store, 0, host="web-8")
    with pytest.raises(HostConflictError, match="another machine or container has live leases as host web-8"):
        store.drive(register(make_context("web-8", machine="other"), POOL))


@pytest.mark.parametrize("name", ["*", "a b", "email\n", "", "x" * 129, "e[m]ail", "a:b"])
def test_a_name_with_wildcards_or_control_characters_is_refused_before_anything_is_sent(store, name):
    for names in ((name, "org-1"), ("email", name)):
        for operation in (resolve(make_context(), POOL, *names), endpoints(POOL, *names)):
            with pytest.raises(InvalidInputError) as refused:
                store.drive(operation)
            assert "\n" not in str(refused.value)
    assert store.calls == []


def test_a_clock_that_goes_back_keeps_the_turns_even(store):
    for number in range(3):
        worker(store, number)
    turns(store, 3)
    key = "alloc:{sdk-v2}:service:email:org-1"
    for member, score in store.client.zrange(key, 0, -1, withscores=True):
        store.client.zadd(key, {member: score + 10**12})
    assert set(Counter(turns(store, 9)).values()) == {3}
