"""What the database's side asks Redis: where workers are, who leads, and claims given back from rows."""

from __future__ import annotations

from dataclasses import replace

import pytest
from scripted_redis import HOUR, MINUTE, SECOND, assert_same_state, claim, error_of, make_context

from allocator.model.errors import HeldError
from allocator.model.names import WorkerId
from allocator.model.pools import SDK_V2, PoolSpec
from allocator.operations.attempt import ClaimRequest
from allocator.operations.end import decline, release
from allocator.operations.find import find
from allocator.operations.lead import Remembered, give_up_leadership, restore, take_leadership
from allocator.operations.listing import leases, port_view, reap
from allocator.operations.pools import apply_pool
from allocator.operations.renew import renew
from allocator.protocol.replies import Reply
from allocator.protocol.wire import ScriptCall, script_keys

EMAIL = WorkerId("org-1", "email")
STRIPE = WorkerId("org-1", "stripe")


def take(store, worker=EMAIL, host="web-1", **asked):
    return store.drive(claim(make_context(host), ClaimRequest(pool="sdk-v2", worker=worker, **asked)))


def where(store, worker=EMAIL, pool=SDK_V2):
    (found,) = store.drive(find(pool, [worker]))
    return found


def untimed(lease):
    return replace(lease, expires_at=0)


# -- find --


def test_a_worker_that_nobody_knows_is_unknown(store):
    store.drive(apply_pool(SDK_V2))
    found = where(store)
    assert (found.how, found.host, found.port, found.fence, found.lease) == (Reply.UNKNOWN, None, None, 0, None)
    assert not found.explains_end_of(5)


def test_a_live_lease_is_found_without_its_token(store):
    lease = take(store)
    found = where(store)
    assert (found.how, found.host, found.port, found.fence) == (Reply.LIVE, "web-1", lease.port, lease.fence)
    assert untimed(found.lease) == untimed(lease)
    assert found.lease.token is None
    assert not found.explains_end_of(lease.fence)
    assert found.explains_end_of(lease.fence - 1)
    assert not found.explains_end_of(lease.fence + 1)
    assert not found.explains_end_of(None)


@pytest.mark.parametrize(
    ("ends", "how"),
    [("release", Reply.RELEASED), ("decline", Reply.DECLINED), ("unseen", Reply.EXPIRED), ("reaped", Reply.EXPIRED)],
)
def test_how_a_lease_ended_is_known(store, ends, how):
    context, lease = make_context(), take(store)
    if ends in {"release", "decline"}:
        store.drive((release if ends == "release" else decline)(context, [lease]))
    else:
        store.advance(31 * SECOND)
    if ends == "reaped":
        store.drive(reap("sdk-v2"))
    found = where(store)
    assert (found.how, found.lease) == (how, None)
    assert found.explains_end_of(lease.fence)


def test_a_lease_whose_port_went_to_another_has_ended(store):
    lease = take(store)
    store.advance(MINUTE)
    take(store, STRIPE, port=lease.port)
    found = where(store)
    assert found.how is Reply.REPLACED
    assert found.explains_end_of(lease.fence)
    assert where(store, STRIPE).how is Reply.LIVE


def test_find_answers_for_many_in_their_order_and_changes_nothing(store):
    workers = [WorkerId("org-1", "crm", number) for number in range(40)]
    held = {worker: take(store, worker) for worker in workers[::2]}
    before = store.dump()
    found = store.drive(find(SDK_V2, workers * 10))
    assert [one.lease and untimed(one.lease) for one in found] == [
        held.get(worker) and untimed(held[worker]) for worker in workers * 10
    ]
    assert_same_state(before, store.dump())


def test_find_looks_in_the_namespace_of_a_fleet_wide_pool(store):
    fleet = PoolSpec(name="f", first=7000, last=7009, scope="fleet")
    store.drive(apply_pool(fleet))
    lease = store.drive(claim(make_context("web-2"), ClaimRequest(pool="f", worker=EMAIL)))
    assert untimed(where(store, pool=fleet).lease) == untimed(lease)


# -- lead --


def lead(store, token, **arguments):
    given = {"ttl_ms": 10_000, "holder": f"host {token[0]}"} | arguments
    return store.drive(take_leadership("p", token=token * 32, **given))


def test_one_leads_and_another_learns_who(store):
    first = lead(store, "a")
    assert first.fence is not None
    second = lead(store, "b")
    assert (second.fence, second.holder) == (None, "host a")
    assert 0 < second.remaining_ms <= 10_000


def test_taking_the_lead_twice_keeps_the_fence(store):
    assert lead(store, "a").fence == lead(store, "a").fence


def test_a_leader_that_gave_up_is_followed_with_a_higher_fence(store):
    first = lead(store, "a")
    assert store.drive(give_up_leadership("p", "a" * 32)) is True
    assert store.drive(give_up_leadership("p", "a" * 32)) is False
    assert lead(store, "b").fence > first.fence
    assert store.drive(give_up_leadership("p", "a" * 32)) is False
    assert lead(store, "c").fence is None


def test_a_leader_s_fence_is_above_all_that_the_database_has_seen(store):
    known = 5 * 10**15
    assert lead(store, "a", known_fence=known).fence == known + 1


def test_a_lead_that_ran_out_is_anyone_s(store):
    first = lead(store, "a")
    store.client.delete("alloc:{p}:leader", "alloc:{p}:tokens:!leader")  # as its TTL does
    assert lead(store, "b").fence > first.fence
    assert lead(store, "a").fence is None


def test_the_token_of_a_leader_stands_among_the_tokens_only(store):
    lead(store, "a")
    for key in store.key_names():
        if ":tokens:" not in key:
            assert "a" * 32 not in (store.client.get(key) or b"").decode()
    assert store.client.pttl("alloc:{p}:leader") > 0
    assert store.client.pttl("alloc:{p}:tokens:!leader") > 0


@pytest.mark.parametrize("key", ["alloc:{p}:leader", "alloc:{p}:tokens:!leader"])
@pytest.mark.parametrize("kind", ["string", "set"])
def test_a_leader_s_key_that_another_program_wrote_is_named(store, key, kind):
    lead(store, "a")
    store.client.delete(key)
    store.client.set(key, "x") if kind == "string" else store.client.sadd(key, "x")
    error = error_of(lambda: lead(store, "a"))
    if kind == "string" and "tokens" in key:
        assert error is None  # somebody else's token
    else:
        assert key in str(error)


# -- restore --

ROWS = [Remembered(EMAIL, "web-1", 5570, 500), Remembered(STRIPE, "web-2", 5570, 700)]


def give_back(store, rows=ROWS, ttl_ms=60_000):
    store.drive(apply_pool(SDK_V2))
    return store.drive(restore(SDK_V2, rows, ttl_ms))


def test_a_restored_port_waits_for_its_own_worker_only(store):
    assert give_back(store) == [True, True]
    assert store.drive(leases("sdk-v2")) == []
    with pytest.raises(HeldError):
        take(store, STRIPE, port=5570)
    other = take(store, WorkerId("org-2", "email"))
    assert other.port != 5570
    lease = take(store)
    assert lease.port == 5570
    assert lease.fence > 700


def test_after_the_time_the_port_is_anyone_s(store):
    give_back(store)
    store.advance(61 * SECOND)
    assert take(store, WorkerId("org-2", "crm"), port=5570).port == 5570


def test_restoring_twice_is_already_and_changes_nothing(store):
    give_back(store)
    before = store.dump()
    assert store.drive(restore(SDK_V2, ROWS, HOUR)) == [False, False]
    assert_same_state(before, store.dump())


def test_what_redis_knows_by_itself_is_left(store):
    held = take(store, WorkerId("org-9", "crm"), port=5570)
    moved = take(store, STRIPE, host="web-3")
    assert give_back(store) == [False, False]
    assert {lease.worker for lease in store.drive(leases("sdk-v2"))} == {held.worker, moved.worker}
    assert store.drive(port_view("sdk-v2", "web-2", 5570)).why == "free"


def test_a_holder_that_lives_on_re_asserts_its_restored_lease(store):
    context = make_context()
    lease = take(store, port=5570)
    store.client.flushall()
    give_back(store, [Remembered(EMAIL, "web-1", 5570, lease.fence)])
    (outcome,) = store.drive(renew(context, [lease]))
    assert outcome.lost is None
    assert outcome.reasserted
    assert outcome.lease.fence > lease.fence


def test_two_rows_of_one_port_or_worker_make_one_claim(store):
    rows = [ROWS[0], Remembered(STRIPE, "web-1", 5570, 9), Remembered(EMAIL, "web-1", 5571, 9)]
    assert give_back(store, rows) == [True, False, False]


def test_nothing_is_restored_into_a_pool_that_is_not_there(store):
    assert store.drive(restore(SDK_V2, ROWS, 60_000)) == [False, False]
    assert store.key_names() == []


@pytest.mark.parametrize("suffix", [":ports:web-1", ":tokens:web-1", ":worker:org-1/email#0", ":events", ":hosts"])
def test_restoring_over_a_key_of_the_wrong_type_changes_nothing(store, suffix):
    store.drive(apply_pool(SDK_V2))
    key = "alloc:{sdk-v2}" + suffix
    store.client.delete(key)
    store.client.sadd(key, "x")
    before = store.dump()
    error = error_of(lambda: store.drive(restore(SDK_V2, ROWS[:1], 60_000)))
    assert key in str(error)
    assert_same_state(before, store.dump())


def test_find_names_a_key_of_the_wrong_type(store):
    take(store)
    for key in ("alloc:{sdk-v2}:worker:org-1/email#0", "alloc:{sdk-v2}:tokens:web-1"):
        kept = store.client.dump(key)
        store.client.delete(key)
        store.client.sadd(key, "x")
        assert key in str(error_of(lambda: store.run(ScriptCall("find", script_keys("sdk-v2", "-"), (str(EMAIL),)))))
        store.client.delete(key)
        store.client.restore(key, 0, kept)


# -- a port that its worker has bound already --


def test_a_port_that_its_worker_has_bound_is_leased_without_a_proof(store):
    store.listening.add(5560)
    store.refused.add(5560)
    with pytest.raises(HeldError):
        take(store, port=5560)
    assert take(store, port=5560, bound_already=True).port == 5560
