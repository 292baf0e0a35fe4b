"""What a claim answers besides a fresh lease: the same lease, a refusal and why, the host's and the pool's state."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from scripted_redis import HOUR, MINUTE, SECOND, assert_same_state, claim, make_context

from allocator.model.errors import (
    CordonedError,
    HeldError,
    HostConflictError,
    InvalidInputError,
    LeaseLostError,
    PoolMissingError,
)
from allocator.model.names import WorkerId
from allocator.model.pools import PoolSpec
from allocator.model.states import LeaseState
from allocator.operations.attempt import ClaimRequest
from allocator.operations.context import pool_rules, read_pool
from allocator.operations.end import release
from allocator.operations.listing import cordon, hosts, leases, reap
from allocator.operations.pools import apply_pool
from allocator.operations.renew import renew

EMAIL = WorkerId("org-1", "email")
STRIPE = WorkerId("org-1", "stripe")
TOKEN = "0123456789abcdef0123456789abcdef"


def take(store, context, worker=EMAIL, pool="sdk-v2", **asked):
    return store.drive(claim(context, ClaimRequest(pool=pool, worker=worker, **asked)))


def live(store, pool="sdk-v2"):
    return store.drive(leases(pool))


def test_a_lease_carries_what_was_asked_for(store):
    context = make_context()
    lease = take(
        store, context, ttl_ms=7_000, state=LeaseState.READY, holder={"pid": 42, "labels": {"team": 'blue é "q"'}}
    )
    assert (lease.state, lease.pid, lease.labels, lease.ttl_ms) == ("ready", 42, {"team": 'blue é "q"'}, 7_000)
    assert lease.deadline == 1_007.0
    (shown,) = live(store)
    assert shown == replace(lease, expires_at=shown.expires_at)
    assert live(store)[0].token is None


def test_a_lease_states_whose_processes_it_is_bound_to(store):
    fields = {"pid": 42, "pid_started": 777, "holder_pid": 7, "holder_started": 70, "boot": "b-1", "namespaces": "1-2"}
    lease = take(store, make_context(), holder=fields)
    assert {name: getattr(lease, name) for name in fields} == fields
    (shown,) = live(store)
    assert shown == replace(lease, expires_at=shown.expires_at)


@pytest.mark.parametrize("known", ["9", "1000000000000000", "9000000000000000"])
def test_a_claim_s_fence_is_above_the_last_one_and_not_behind_the_clock(store, known):
    take(store, make_context(), worker=STRIPE)
    store.client.hset("alloc:{sdk-v2}", "fence", known)
    seconds, _ = store.client.time()
    lease = take(store, make_context())
    assert lease.fence > int(known)
    assert lease.fence >= seconds * 1_000_000
    assert store.client.hget("alloc:{sdk-v2}", "fence") == str(lease.fence).encode()


def test_what_a_holder_does_not_state_takes_no_room_in_redis(store):
    take(store, make_context())
    text = store.client.get("alloc:{sdk-v2}:lease:web-1:5556").decode()
    assert not {"pid", "boot", "restarts", "last_error", "labels"} & json.loads(text).keys()


def test_the_same_token_claiming_again_gets_the_same_lease(store):
    context = make_context()
    first = take(store, context, token=TOKEN)
    before = store.dump()
    again = take(store, context, token=TOKEN)
    assert (again.port, again.fence, again.token) == (first.port, first.fence, TOKEN)
    assert_same_state(before, store.dump())


def test_the_same_token_asking_for_another_port_is_refused(store):
    context = make_context()
    take(store, context, token=TOKEN)
    with pytest.raises(HeldError, match="already has a lease on web-1:5556"):
        take(store, context, token=TOKEN, port=5570)
    assert len(live(store)) == 1


def test_claiming_again_extends_and_rewrites_what_was_asked_for(store):
    context = make_context()
    take(store, context, token=TOKEN)
    store.advance(20 * SECOND)
    again = take(store, context, token=TOKEN, ttl_ms=60_000, holder={"pid": 7, "labels": {"a": "b"}})
    assert again.expires_at * 1_000 - store.now_ms() > 55_000
    assert (live(store)[0].pid, live(store)[0].labels, live(store)[0].ttl_ms) == (7, {"a": "b"}, 60_000)


def test_a_worker_with_a_live_lease_elsewhere_learns_where(store):
    here, there = make_context(), make_context("web-2", machine="m2")
    take(store, here)
    before = store.dump()
    with pytest.raises(HeldError, match="org-1/email#0 already has a lease on web-1:5556 until") as reported:
        take(store, there)
    assert reported.value.holder.host == "web-1"
    assert 29 < reported.value.retry_after <= 30
    assert_same_state(before, store.dump())


def test_the_same_token_on_another_host_is_refused(store):
    take(store, make_context(), token=TOKEN)
    with pytest.raises(HeldError):
        take(store, make_context("web-2", machine="m2"), token=TOKEN)


def test_an_expired_lease_does_not_bind_its_worker(store):
    take(store, make_context())
    store.advance(31 * SECOND)
    assert take(store, make_context("web-2", machine="m2")).host == "web-2"


def test_an_expired_port_stays_unclaimable_for_its_grace(store):
    context = make_context()
    take(store, context)
    store.advance(33 * SECOND)
    with pytest.raises(HeldError, match="kept free"):
        take(store, context, STRIPE, port=5556)
    store.advance(3 * SECOND)
    assert take(store, context, STRIPE, port=5556).port == 5556
    assert store.event_types("sdk-v2") == ["pool", "granted", "expired", "granted"]


def test_a_worker_returns_to_its_port_during_its_own_cooldown_only(store):
    context = make_context()
    held = take(store, context)
    store.drive(release(context, [held]))
    with pytest.raises(HeldError):
        take(store, context, STRIPE, port=5556)
    assert take(store, context, port=5556).port == 5556


def test_a_worker_does_not_return_to_a_cooldown_that_another_began(store):
    context = make_context()
    store.drive(release(context, [take(store, context)]))
    store.advance(2 * SECOND)
    store.drive(release(context, [take(store, context, STRIPE, port=5556)]))
    assert take(store, context).port != 5556


def test_a_superseded_lease_is_replaced_on_its_port(store):
    context = make_context()
    dead = take(store, context)
    lease = take(store, context, supersede_fence=dead.fence)
    assert lease.port == dead.port
    assert lease.fence > dead.fence
    assert store.event_types("sdk-v2")[-3:] == ["granted", "superseded", "granted"]
    (outcome,) = store.drive(renew(context, [dead]))
    assert outcome.lost


def test_superseding_another_fence_is_refused(store):
    context = make_context()
    dead = take(store, context)
    with pytest.raises(HeldError):
        take(store, context, supersede_fence=dead.fence - 1)
    with pytest.raises(HeldError):
        take(store, make_context("web-2", machine="m2"), supersede_fence=dead.fence)


@pytest.mark.parametrize("how", ["explicit", "stranger"])
def test_superseding_onto_another_port_ends_the_old_lease(store, how):
    context = make_context()
    dead = take(store, context)
    if how == "explicit":
        lease = take(store, context, supersede_fence=dead.fence, port=5570)
    else:
        store.listening = {dead.port}
        lease = take(store, context, supersede_fence=dead.fence)
    assert lease.port != dead.port
    assert [each.port for each in live(store)] == [lease.port]
    (outcome,) = store.drive(renew(context, [dead]))
    assert isinstance(outcome.lost, LeaseLostError)
    assert [each.port for each in live(store)] == [lease.port]
    assert store.client.zcard("alloc:{sdk-v2}:service:email:org-1") == 1
    assert "superseded" in store.event_types("sdk-v2")


def test_a_second_machine_under_the_same_name_is_refused_while_the_first_has_leases(store):
    take(store, make_context())
    before = store.dump()
    with pytest.raises(HostConflictError, match="another machine or container has live leases as host web-1"):
        take(store, make_context(machine="m2"), STRIPE)
    assert_same_state(before, store.dump())


OTHERS = {
    "a clone, or a machine after its reboot": {"boot": "b2", "netns": "n2"},
    "a container, or one after its restart": {"netns": "n2"},
}


@pytest.fixture(params=OTHERS)
def other(request):
    """Return what tells a second host of one machine apart that comes under the same name."""
    return OTHERS[request.param]


def running_for(context, seconds):
    """Return a caller whose host began to run so long ago."""
    context.began = context.clock() - seconds
    return context


def test_who_comes_under_a_name_whose_leases_are_renewed_since_is_refused_and_changes_nothing(store, other):
    first = make_context()
    lease = take(store, first)
    store.advance(10 * SECOND)
    (outcome,) = store.drive(renew(first, [lease]))
    store.advance(3 * SECOND)
    before = store.dump()
    for plugin in (EMAIL, STRIPE):
        with pytest.raises(HostConflictError, match="name of its own with --host"):
            take(store, running_for(make_context(**other), 5), plugin)
    assert_same_state(before, store.dump())
    (outcome,) = store.drive(renew(first, [outcome.lease]))
    assert not outcome.lost


def test_who_began_after_the_last_renewal_takes_the_name_over_at_once_and_ends_what_is_left(store, other):
    first = make_context()
    mine, left = take(store, first), take(store, first, STRIPE)
    store.advance(3 * SECOND)
    heir = running_for(make_context(**other), 1)
    again = take(store, heir)
    assert again.port == mine.port
    assert again.fence > left.fence
    assert [one.worker for one in live(store)] == [EMAIL]
    assert store.event_types("sdk-v2")[-3:] == ["expired", "expired", "granted"]
    assert take(store, heir, STRIPE).port == left.port
    assert store.drive(renew(first, [mine]))[0].lost


def test_a_host_that_is_known_again_is_not_asked_again(store, other):
    take(store, make_context())
    store.advance(3 * SECOND)
    heir = running_for(make_context(**other), 1)
    take(store, heir)
    store.advance(SECOND)
    assert take(store, running_for(make_context(**other), 100), STRIPE).port == 5557
    with pytest.raises(HostConflictError):
        take(store, running_for(make_context(), 50), WorkerId("org-1", "slack"))


def test_a_host_of_which_nobody_knows_since_when_it_runs_takes_no_name_over(store, other):
    take(store, make_context())
    store.advance(3 * SECOND)
    with pytest.raises(HostConflictError):
        take(store, make_context(**other))


def test_a_second_machine_takes_the_name_over_when_the_first_has_no_lease(store):
    first = make_context()
    store.drive(release(first, [take(store, first)]))
    assert take(store, make_context(machine="m2"), STRIPE).port == 5557
    (host,) = store.drive(hosts("sdk-v2"))
    assert host.machine == "m2"
    with pytest.raises(HostConflictError):
        take(store, first)


def test_in_fleet_scope_only_leases_of_that_host_make_a_conflict(store):
    store.drive(apply_pool(PoolSpec(name="fleet", first=7001, last=7009, scope="fleet")))
    one, two = make_context("web-1"), make_context("web-2", machine="m2")
    store.drive(release(one, [take(store, one, pool="fleet")]))
    take(store, two, STRIPE, "fleet")
    assert take(store, make_context("web-1", machine="m3"), pool="fleet").host == "web-1"


def test_in_fleet_scope_a_port_is_unique_over_all_hosts(store):
    store.drive(apply_pool(PoolSpec(name="fleet", first=7001, last=7002, scope="fleet")))
    one, two = make_context("web-1"), make_context("web-2", machine="m2")
    held = take(store, one, pool="fleet")
    assert held.port == 7001
    with pytest.raises(HeldError, match="is held by org-1/email#0"):
        take(store, two, STRIPE, "fleet", port=7001)
    assert take(store, two, STRIPE, "fleet").port == 7002
    assert [(each.host, each.port) for each in live(store, "fleet")] == [("web-1", 7001), ("web-2", 7002)]
    store.drive(release(one, [held]))
    store.advance(2 * SECOND)
    assert take(store, two, WorkerId("o", "p"), "fleet").port == 7001


def test_a_cordoned_host_gives_out_nothing_and_keeps_its_leases(store):
    context = make_context()
    lease = take(store, context, token=TOKEN)
    assert store.drive(cordon("sdk-v2", "web-1", on=True)) is True
    assert store.drive(cordon("sdk-v2", "web-1", on=True)) is False
    with pytest.raises(CordonedError, match="cordoned"):
        take(store, context, STRIPE)
    assert take(store, context, token=TOKEN).port == lease.port
    assert store.drive(renew(context, [lease]))[0].lost is None
    assert take(store, make_context("web-2", machine="m2"), STRIPE)
    assert store.drive(cordon("sdk-v2", "web-1", on=False)) is True
    assert take(store, context, WorkerId("org-9", "stripe"))
    assert [kind for kind in store.event_types("sdk-v2") if "cordon" in kind] == ["cordoned", "uncordoned"]


def test_a_cordon_of_one_host_of_a_fleet_pool_leaves_the_others(store):
    store.drive(apply_pool(PoolSpec(name="fleet", first=7001, last=7009, scope="fleet")))
    one, two = make_context("web-1"), make_context("web-2", machine="m2")
    take(store, one, pool="fleet")
    store.drive(cordon("fleet", "web-1", on=True))
    with pytest.raises(CordonedError):
        take(store, one, STRIPE, "fleet")
    assert take(store, two, STRIPE, "fleet")


def test_an_unknown_host_cannot_be_cordoned(store):
    take(store, make_context())
    with pytest.raises(InvalidInputError, match="host nowhere is not known in pool sdk-v2"):
        store.drive(cordon("sdk-v2", "nowhere", on=True))


def test_a_pool_that_nobody_knows_is_refused_and_not_made(store):
    with pytest.raises(PoolMissingError, match="pool nope is not defined"):
        take(store, make_context(), pool="nope")
    assert store.key_names() == []


@pytest.mark.parametrize("ttl_ms", [-1, 0, 999, 86_400_001, 10**15])
def test_a_ttl_that_the_pool_forbids_changes_nothing(store, ttl_ms):
    context = make_context()
    store.drive(pool_rules(context, "sdk-v2"))
    before = store.dump()
    with pytest.raises(InvalidInputError, match="is not allowed in pool sdk-v2; give 1s to 1d"):
        take(store, context, ttl_ms=ttl_ms)
    assert_same_state(before, store.dump())


def test_a_pool_that_shrank_its_ttl_meanwhile_is_read_again(store):
    context = make_context()
    pool = PoolSpec(name="p", first=7001, last=7009)
    store.drive(apply_pool(pool))
    store.drive(pool_rules(context, "p"))
    store.drive(apply_pool(PoolSpec(name="p", first=7001, last=7009, ttl_ms=2_000, ttl_max_ms=10_000)))
    assert take(store, context, pool="p").ttl_ms == 2_000
    with pytest.raises(InvalidInputError, match="give 1s to 10s"):
        take(store, context, STRIPE, "p", ttl_ms=30_000)


def test_a_pool_that_grew_meanwhile_is_read_again_before_refusing(store):
    context = make_context()
    store.drive(apply_pool(PoolSpec(name="p", first=7001, last=7009, ttl_max_ms=60_000)))
    store.drive(pool_rules(context, "p"))
    store.drive(apply_pool(PoolSpec(name="p", first=7001, last=7020)))
    assert take(store, context, pool="p", port=7020, ttl_ms=HOUR).port == 7020


def test_a_client_clock_a_year_off_does_not_matter(store):
    context = make_context()
    for skew in (-365 * 24 * 3_600.0, 365 * 24 * 3_600.0):
        context.clock = lambda skew=skew: 1_000.0 + skew
        lease = take(store, context, token=TOKEN)
        assert lease.deadline - context.clock() == pytest.approx(30, abs=5)
        assert abs(lease.expires_at - store.now_ms() / 1_000 - 30) < 5
        (outcome,) = store.drive(renew(context, [lease]))
        assert outcome.lease.deadline - context.clock() == 30


def test_operations_read_no_clock_of_their_own():
    import ast
    from pathlib import Path

    import allocator.protocol

    for path in Path(allocator.protocol.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [each.name for each in getattr(node, "names", [])] if isinstance(node, ast.Import) else []
            assert "time" not in names, path
            called = node.func.attr if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) else ""
            assert called not in {"now", "utcnow", "time", "today"}, path


def test_stickiness_outlives_a_weekend_but_not_for_ever(store):
    context = make_context()
    store.drive(release(context, [take(store, context, port=5590)]))
    store.advance(3 * 24 * HOUR)
    lease = take(store, context)
    assert lease.port == 5590
    store.drive(release(context, [lease]))
    store.advance(8 * 24 * HOUR)
    store.drive(reap("sdk-v2"))
    assert take(store, context).port == 5556


def test_a_long_kept_lease_is_never_forgotten(store):
    context = make_context()
    lease = take(store, context, ttl_ms=30 * MINUTE)
    for _ in range(30):
        store.advance(8 * HOUR // 30)
        (outcome,) = store.drive(renew(context, [lease]))
        lease = outcome.lease
    assert store.client.pttl("alloc:{sdk-v2}:worker:org-1/email#0") > 6 * 24 * HOUR


def test_pool_rules_are_shared_by_reading(store):
    store.drive(apply_pool(PoolSpec(name="p", first=7001, last=7009, conventional={"email": (7003, 7004)})))
    assert store.drive(read_pool("p")).conventional == {"email": (7003, 7004)}
