"""Release, decline and what nobody saw end: cooldown, quarantine, tokens, and the reaper."""

from __future__ import annotations

from dataclasses import replace

import pytest
from scripted_redis import HOUR, MINUTE, SECOND, assert_same_state, claim, make_context

from allocator.model.errors import HeldError, InvalidInputError
from allocator.model.names import WorkerId
from allocator.model.pools import PoolSpec
from allocator.operations.attempt import ClaimRequest
from allocator.operations.end import Forced, decline, force, release
from allocator.operations.listing import Reaped, leases, port_view, reap
from allocator.operations.pools import apply_pool
from allocator.operations.renew import renew
from allocator.protocol.wire import ScriptCall, script_keys

EMAIL = WorkerId("org-1", "email")
STRIPE = WorkerId("org-1", "stripe")


def live(store, pool="sdk-v2"):
    return store.drive(leases(pool))


def take(store, context, worker=EMAIL, pool="sdk-v2", **asked):
    return store.drive(claim(context, ClaimRequest(pool=pool, worker=worker, **asked)))


def free_in_ms(store, port=5556, pool="sdk-v2"):
    return store.drive(port_view(pool, "web-1", port)).claimable_in_ms


@pytest.mark.parametrize("end", [release, decline])
def test_an_ending_twice_is_already_and_changes_nothing(store, end):
    context = make_context()
    lease = take(store, context)
    assert store.drive(end(context, [lease])) == [True]
    before = store.dump()
    assert store.drive(end(context, [lease])) == [False]
    assert_same_state(before, store.dump())


def test_a_decline_after_a_release_is_already_and_the_other_way_round(store):
    context = make_context()
    one, two = take(store, context), take(store, context, STRIPE)
    store.drive(release(context, [one]))
    store.drive(decline(context, [two]))
    before = store.dump()
    assert store.drive(decline(context, [one])) == [False]
    assert store.drive(release(context, [two])) == [False]
    assert_same_state(before, store.dump())


@pytest.mark.parametrize("end", [release, decline])
@pytest.mark.parametrize("token", ["f" * 32, "", "web-1"])
def test_a_wrong_token_ends_nothing(store, end, token):
    context = make_context()
    lease = take(store, context)
    before = store.dump()
    wrong = replace(lease, token=token)
    with pytest.raises(HeldError if token else InvalidInputError) as reported:
        store.drive(end(context, [wrong]))
    assert lease.token not in str(reported.value)
    assert_same_state(before, store.dump())


@pytest.mark.parametrize("end", [release, decline])
def test_a_stale_token_cannot_end_a_newer_lease(store, end):
    context = make_context()
    stale = take(store, context)
    store.advance(40 * SECOND)
    take(store, context, STRIPE, port=5556)
    before = store.dump()
    with pytest.raises(HeldError, match="held by org-1/stripe#0 under another token; nothing was changed"):
        store.drive(end(context, [stale]))
    assert_same_state(before, store.dump())


def test_a_batch_ends_the_rest_beside_one_that_is_not_ours(store):
    context = make_context()
    held = [take(store, context, WorkerId("o", "p", i)) for i in range(3)]
    with pytest.raises(HeldError):
        store.drive(release(context, [held[0], replace(held[1], token="f" * 32), held[2]]))
    assert [lease.port for lease in store.drive(leases("sdk-v2"))] == [held[1].port]


def test_the_same_lease_twice_in_a_batch_ends_once(store):
    context = make_context()
    lease = take(store, context)
    assert store.drive(decline(context, [lease, lease])) == [True, False]
    assert store.event_types("sdk-v2").count("declined") == 1
    assert 4_000 < free_in_ms(store) <= 5_000


def test_300_leases_end_in_two_calls(store):
    store.drive(apply_pool(PoolSpec(name="wide", first=1, last=600)))
    context = make_context()
    held = [take(store, context, WorkerId("o", "p", i), "wide") for i in range(300)]
    store.calls.clear()
    assert store.drive(release(context, held)) == [True] * 300
    assert [call.script for call in store.calls] == ["end", "end"]
    assert not [key for key in store.key_names() if ":lease:" in key or ":service:" in key]


def test_a_release_cools_down_as_the_pool_states(store):
    store.drive(apply_pool(PoolSpec(name="slow", first=7001, last=7004, cooldown_ms=90_000)))
    context = make_context()
    lease = take(store, context, pool="slow")
    store.drive(release(context, [lease]))
    assert 85_000 < free_in_ms(store, lease.port, "slow") <= 90_000
    store.advance(91 * SECOND)
    assert take(store, context, STRIPE, "slow", port=lease.port)


def test_quarantine_grows_fourfold_to_ten_minutes_and_an_hour_of_peace_resets_it(store):
    context = make_context()
    for seconds in (5, 20, 80, 320, 600, 600):
        lease = take(store, context, port=5590)
        store.drive(decline(context, [lease]))
        left = free_in_ms(store, 5590)
        assert (seconds - 4) * SECOND < left <= seconds * SECOND
        with pytest.raises(HeldError):
            take(store, context, port=5590)
        store.advance(seconds * SECOND + SECOND)
    store.advance(HOUR)
    store.drive(decline(context, [take(store, context, port=5590)]))
    assert 1_000 < free_in_ms(store, 5590) <= 5_000


def test_quarantines_are_counted_per_port(store):
    context = make_context()
    for port in (5590, 5591):
        store.drive(decline(context, [take(store, context, port=port)]))
        assert free_in_ms(store, port) <= 5_000


def test_releasing_an_expired_lease_ends_it_unless_another_has_the_port(store):
    context = make_context()
    lease = take(store, context)
    store.advance(31 * SECOND)
    assert store.drive(release(context, [lease])) == [True]
    assert free_in_ms(store) <= 1_000
    assert store.event_types("sdk-v2")[-1] == "released"


def test_a_release_does_not_move_the_address_of_a_worker_that_went_on(store):
    context = make_context()
    lease = take(store, context)
    store.advance(31 * SECOND)
    newer = take(store, context, port=5590)
    store.drive(release(context, [lease]))
    with pytest.raises(HeldError):
        take(store, context, port=5591)
    assert not store.drive(renew(context, [newer]))[0].lost


def test_a_retired_port_is_forgotten_when_it_comes_back(store):
    context = make_context()
    store.drive(apply_pool(PoolSpec(name="p", first=7001, last=7009)))
    lease = take(store, context, pool="p", port=7009)
    store.drive(apply_pool(PoolSpec(name="p", first=7001, last=7003)))
    assert not store.drive(renew(context, [lease]))[0].lost
    store.drive(release(context, [lease]))
    store.advance(MINUTE)
    ports = [take(store, context, WorkerId("o", "p", i), "p").port for i in range(3)]
    assert ports == [7001, 7002, 7003]


# --- reap ---


def test_the_reaper_makes_an_expiry_known_once(store):
    context = make_context()
    lease = take(store, context)
    assert store.drive(reap("sdk-v2")).closed == 0
    store.advance(40 * SECOND)
    assert store.drive(reap("sdk-v2")).closed == 1
    event = store.events("sdk-v2")[-1]
    assert event == {
        "type": "expired", "host": "web-1", "port": "5556", "worker": "org-1/email#0", "fence": str(lease.fence),
    }  # fmt: skip
    before = store.dump()
    assert store.drive(reap("sdk-v2")) == Reaped(closed=0, next_s=None, namespaces=1)
    assert_same_state(before, store.dump())


def test_the_reaper_leaves_live_leases_and_states_when_to_come_again(store):
    context = make_context()
    take(store, context)
    lease = take(store, context, STRIPE, ttl_ms=120_000)
    store.advance(40 * SECOND)
    reaped = store.drive(reap("sdk-v2"))
    assert reaped.closed == 1
    assert 70 < reaped.next_s <= 80
    assert not store.drive(renew(context, [lease]))[0].lost


def test_the_reaper_has_nothing_to_do_in_an_empty_pool(store):
    assert store.drive(reap("nothing")) == Reaped(closed=0, next_s=None, namespaces=0)
    assert store.key_names() == []


def test_200_leases_that_expire_at_one_millisecond_are_all_closed(store):
    store.drive(apply_pool(PoolSpec(name="wide", first=1, last=600)))
    context = make_context()
    for i in range(200):
        take(store, context, WorkerId("o", "p", i), "wide")
    ports = "alloc:{wide}:ports:web-1"
    same = store.now_ms() + 30_000
    store.client.zadd(ports, dict.fromkeys(store.client.zrange(ports, 0, -1), same))
    store.advance(60 * SECOND)
    closed = []
    for _ in range(20):
        reaped = store.drive(reap("wide"))
        closed.append(reaped.closed)
        if reaped.next_s is None:
            break
    assert sum(closed) == 200
    assert max(closed) == 64
    assert store.event_types("wide").count("expired") == 200
    assert not [key for key in store.key_names() if ":service:" in key]


def test_the_reaper_visits_many_hosts(store):
    for i in range(40):
        take(store, make_context(f"web-{i}", machine=f"m{i}"), WorkerId("o", "p", i))
    store.advance(40 * SECOND)
    total = 0
    for _ in range(20):
        reaped = store.drive(reap("sdk-v2"))
        total += reaped.closed
        if reaped.next_s is None:
            break
    assert total == 40
    assert reaped.next_s is None
    assert reaped.namespaces == 40


def test_the_reapers_cursor_does_not_miss_a_lease_that_came_after(store):
    context = make_context()
    for round_ in range(5):
        take(store, context, WorkerId("o", "p", round_), ttl_ms=1_000 * (round_ + 1))
        store.advance(30 * SECOND)
        assert store.drive(reap("sdk-v2")).closed == 1


def test_the_reaper_goes_on_when_the_grace_of_the_pool_shrank(store):
    store.drive(apply_pool(PoolSpec(name="p", first=7001, last=7009, grace_ms=HOUR)))
    context = make_context()
    take(store, context, pool="p")
    store.advance(40 * SECOND)
    assert store.drive(reap("p")).closed == 1
    store.drive(apply_pool(PoolSpec(name="p", first=7001, last=7009, grace_ms=0)))
    take(store, context, STRIPE, pool="p")
    store.advance(40 * SECOND)
    assert store.drive(reap("p")).closed == 1


def test_renewals_ask_for_the_reaper_until_it_came_and_again_when_it_has_something_to_do(store):
    here, there = make_context(), make_context("web-2", machine="m2")
    lease, other = take(store, here, ttl_ms=60_000), take(store, there, STRIPE)
    asked = []
    for _ in range(3):
        (outcome,) = store.drive(renew(here, [lease]))
        asked.append(outcome.reap_due)
        if outcome.reap_due:
            store.drive(reap("sdk-v2"))
    assert asked == [True, False, False]
    store.advance(40 * SECOND)
    (outcome,) = store.drive(renew(here, [lease]))
    assert outcome.reap_due
    assert store.drive(reap("sdk-v2")).closed == 1
    assert store.events("sdk-v2")[-1]["worker"] == str(other.worker)


def test_namespaces_that_are_due_one_after_the_other_are_visited_together(store):
    contexts = [make_context(f"web-{i}", machine=f"m{i}") for i in range(30)]
    held = [take(store, context, WorkerId("o", "p", i), ttl_ms=30_000) for i, context in enumerate(contexts)]
    store.advance(25 * SECOND)
    for context, lease in zip(contexts, held, strict=True):
        store.drive(renew(context, [lease]))
    for i in range(30):  # the agenda does not know of renewals: each is due, and is found to live
        store.client.zadd("alloc:{sdk-v2}:hosts", {f"web-{i}": store.now_ms() - 300 + i})
    visits = 0
    for context, lease in zip(contexts, held, strict=True):
        if store.drive(renew(context, [lease]))[0].reap_due:
            store.drive(reap("sdk-v2"))
            visits += 1
    assert visits == 2
    assert store.client.zcount("alloc:{sdk-v2}:hosts", 0, store.now_ms()) == 0


def test_a_claim_of_an_expired_port_leaves_the_reaper_nothing(store):
    context = make_context()
    take(store, context)
    store.advance(40 * SECOND)
    take(store, context, STRIPE, port=5556)
    assert store.drive(reap("sdk-v2")).closed == 0
    assert store.event_types("sdk-v2").count("expired") == 1


@pytest.mark.parametrize("most", [1, 3])
def test_the_reaper_closes_no_more_than_it_was_asked_to(store, most):
    context = make_context()
    for i in range(5):
        take(store, context, WorkerId("o", "p", i))
    store.advance(40 * SECOND)
    reply = store.run(ScriptCall("reap", script_keys("sdk-v2"), (most,)))
    assert reply[1] == most


def test_the_reaper_leaves_a_lease_that_lives_past_its_score(store):
    context = make_context()
    lease = take(store, context)
    store.client.zadd("alloc:{sdk-v2}:ports:web-1", {"5556": store.now_ms() - 1_000})
    store.client.zadd("alloc:{sdk-v2}:hosts", {"web-1": store.now_ms() - 1_000})
    assert store.drive(reap("sdk-v2")).closed == 0
    assert not store.drive(renew(context, [lease]))[0].lost


def test_a_lease_that_an_operator_ends_is_over_and_the_events_state_who_and_why(store):
    context = make_context()
    lease, other = take(store, context), take(store, context, STRIPE)
    (seen, _) = live(store)
    assert store.drive(force([seen], Forced("ann", "its host burnt\ndown"))) == [True]
    assert [one.worker for one in live(store)] == [other.worker]
    (event,) = [one for one in store.events("sdk-v2") if one["type"] == "released"]
    assert (event["by"], event["reason"], event["worker"]) == ("ann", "its host burnt down", str(lease.worker))
    (outcome, kept) = store.drive(renew(context, [lease, other]))
    assert "was ended by an operator" in str(outcome.lost)
    assert not kept.lost
    assert store.drive(force([seen], Forced("ann", "again"))) == [False]
    assert store.drive(release(context, [lease])) == [False]


def test_an_operator_ends_the_lease_that_was_seen_and_no_newer_one(store):
    context = make_context()
    lease = take(store, context)
    (seen,) = live(store)
    store.drive(release(context, [lease]))
    newer = take(store, context)
    assert newer.port == seen.port
    with pytest.raises(HeldError):
        store.drive(force([seen], Forced("ann", "gone")))
    assert [one.fence for one in live(store)] == [newer.fence]


def test_a_lease_is_forced_for_a_reason_only(store):
    lease = take(store, make_context())
    with pytest.raises(InvalidInputError, match="--reason"):
        store.drive(force([lease], Forced("ann", "  ")))
    assert len(live(store)) == 1
