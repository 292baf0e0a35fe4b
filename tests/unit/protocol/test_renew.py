"""Renewal: what is extended, what is re-asserted after a loss of data, and what is lost for good."""

from __future__ import annotations

from dataclasses import replace

import pytest
import redis
from scripted_redis import HOUR, SECOND, assert_same_state, claim, make_context

from allocator.model.errors import InvalidInputError, LeaseLostError, PoolMissingError
from allocator.model.names import WorkerId
from allocator.model.pools import PoolSpec
from allocator.model.states import ENDED_STATES, LIVE_STATES, LeaseState
from allocator.operations.attempt import ClaimRequest
from allocator.operations.context import read_pool
from allocator.operations.end import decline, release
from allocator.operations.listing import leases, reap
from allocator.operations.pools import apply_pool
from allocator.operations.renew import PROOF_LENGTH, renew
from allocator.protocol.signatures.renew import RenewCall, RenewedLease
from allocator.protocol.wire import ScriptCall, script_keys

EMAIL = WorkerId("org-1", "email")
STRIPE = WorkerId("org-1", "stripe")


def take(store, context, worker=EMAIL, pool="sdk-v2", **asked):
    return store.drive(claim(context, ClaimRequest(pool=pool, worker=worker, **asked)))


def again(store, context, *held, rewrite=False):
    return store.drive(renew(context, list(held), rewrite=rewrite))


def live(store, pool="sdk-v2"):
    return store.drive(leases(pool))


def raw_renew(store, lease, token, *, fence=None, namespace="web-1", state="starting"):
    one = RenewedLease(
        port=lease.port,
        token=token,
        fence=fence or lease.fence,
        ttl_ms=lease.ttl_ms,
        worker=str(lease.worker),
        mode="set",
        state=state,
    )
    call = RenewCall(pool=lease.pool, namespace=namespace, host=lease.host, identity="m1 b1 n1", leases=(one,))
    return store.run(call.encode())


def test_a_renewed_lease_lives_its_ttl_from_now(store):
    context = make_context()
    lease = take(store, context)
    store.advance(20 * SECOND)
    (outcome,) = again(store, context, lease)
    assert not outcome.lost
    assert not outcome.reasserted
    assert outcome.lease.fence == lease.fence
    assert 29_000 < store.client.pttl("alloc:{sdk-v2}:lease:web-1:5556") <= 30_000
    score = store.client.zscore("alloc:{sdk-v2}:ports:web-1", "5556")
    assert 34_000 < score - store.now_ms() <= 35_000


def test_renewing_writes_no_event_but_for_another_state(store):
    context = make_context()
    lease = take(store, context)
    again(store, context, lease)
    again(store, context, replace(lease, state=LeaseState.READY), rewrite=True)
    again(store, context, replace(lease, state=LeaseState.READY, pid=9, labels={"a": "b"}), rewrite=True)
    assert store.event_types("sdk-v2") == ["pool", "granted", "changed"]
    assert store.events("sdk-v2")[-1]["state"] == "ready"
    (shown,) = live(store)
    assert (shown.state, shown.pid, shown.labels, shown.granted_at) == ("ready", 9, {"a": "b"}, lease.granted_at)


def test_what_a_holder_reports_of_its_worker_is_written_and_kept(store):
    context = make_context()
    lease = take(store, context)
    printed = replace(lease, pid=9, pid_started=5, boot="b", restarts=3, last_error='Error: "listen" EADDRINUSE é')
    again(store, context, printed, rewrite=True)
    again(store, context, printed)
    (shown,) = live(store)
    assert (shown.pid_started, shown.boot, shown.restarts, shown.last_error) == (5, "b", 3, printed.last_error)
    assert shown.as_json()["restarts"] == 3
    assert shown.as_json()["last_error"] == printed.last_error


def test_a_batch_of_many_hosts_and_pools_keeps_its_order(store):
    store.drive(apply_pool(PoolSpec(name="other", first=1, last=600)))
    one, two = make_context(), make_context("web-2", machine="m2")
    held = [take(store, one, WorkerId("o", "p", i), "other") for i in range(300)]
    held += [take(store, two), take(store, one, STRIPE)]
    held = held[::7] + [lease for i, lease in enumerate(held) if i % 7]
    outcomes = again(store, one, *held)
    assert [outcome.lease.address for outcome in outcomes] == [lease.address for lease in held]
    assert not any(outcome.lost or outcome.reasserted for outcome in outcomes)


def test_a_ttl_that_the_pool_forbids_is_refused_on_rewrite(store):
    context = make_context()
    lease = take(store, context)
    with pytest.raises(InvalidInputError):
        again(store, context, replace(lease, ttl_ms=1), rewrite=True)


def test_a_readers_copy_cannot_renew(store):
    context = make_context()
    take(store, context)
    with pytest.raises(InvalidInputError, match="has no token"):
        again(store, context, *live(store))


def test_a_wrong_token_renews_nothing(store):
    context = make_context()
    lease = take(store, context)
    before = store.dump()
    (outcome,) = again(store, context, replace(lease, token="f" * 32, ttl_ms=HOUR))
    assert isinstance(outcome.lost, LeaseLostError)
    assert outcome.lost.holder.worker == EMAIL
    assert_same_state(before, store.dump())


@pytest.mark.parametrize("text", ["web-1", "org-1/email#0", "", "."])
def test_a_part_of_the_grant_is_no_token(store, text):
    lease = take(store, make_context())
    before = store.dump()
    assert raw_renew(store, lease, text)[1] == b"lost"
    assert_same_state(before, store.dump())


def test_a_host_whose_name_is_a_token_gives_nobody_its_leases(store):
    name = "a" * 32
    lease = take(store, make_context(name))
    before = store.dump()
    assert raw_renew(store, lease, name, namespace=name)[1] == b"lost"
    assert_same_state(before, store.dump())


@pytest.mark.parametrize("end", [release, decline])
def test_a_renewal_never_brings_back_what_its_holder_ended(store, end):
    context = make_context()
    lease = take(store, context)
    store.drive(end(context, [lease]))
    before = store.dump()
    (outcome,) = again(store, context, lease)
    assert "has ended; claim again" in str(outcome.lost)
    assert_same_state(before, store.dump())
    store.advance(HOUR)
    assert again(store, context, lease)[0].lost


def test_an_expired_lease_is_re_asserted_while_nobody_has_its_port(store):
    context = make_context()
    lease = take(store, context)
    store.advance(40 * SECOND)
    (outcome,) = again(store, context, lease)
    assert outcome.reasserted
    assert outcome.lease.fence > lease.fence
    assert [each.port for each in live(store)] == [5556]


def test_an_expired_lease_that_was_reaped_is_re_asserted_all_the_same(store):
    context = make_context()
    lease = take(store, context)
    store.advance(40 * SECOND)
    assert store.drive(reap("sdk-v2")).closed == 1
    (outcome,) = again(store, context, lease)
    assert outcome.reasserted
    assert [each.port for each in live(store)] == [5556]
    assert store.event_types("sdk-v2")[-2:] == ["expired", "reasserted"]


def test_an_expired_port_that_another_has_is_lost(store):
    context = make_context()
    lease = take(store, context)
    store.advance(40 * SECOND)
    newer = take(store, context, STRIPE, port=5556)
    (outcome,) = again(store, context, lease)
    assert "org-1/stripe#0 has web-1:5556 now" in str(outcome.lost)
    store.drive(release(context, [newer]))
    store.advance(HOUR)
    (outcome,) = again(store, context, lease)
    assert "a newer lease had the port since" in str(outcome.lost)
    assert live(store) == []


def test_a_worker_that_moved_on_does_not_get_its_old_port_back(store):
    context = make_context()
    lease = take(store, context)
    store.advance(40 * SECOND)
    take(store, context, port=5590)
    (outcome,) = again(store, context, lease)
    assert "org-1/email#0 has web-1:5590 now" in str(outcome.lost)


def test_44_holders_have_their_ports_again_after_flushall_and_newer_fences(store):
    context = make_context()
    held = [take(store, context, WorkerId("o", "p", i)) for i in range(44)]
    newest = max(lease.fence for lease in held)
    store.client.flushall()
    outcomes = again(store, context, *held)
    assert all(outcome.reasserted for outcome in outcomes)
    fences = [outcome.lease.fence for outcome in outcomes]
    assert len(set(fences)) == 44
    assert min(fences) > newest
    assert [lease.port for lease in live(store)] == list(range(5556, 5600))
    with pytest.raises(Exception, match="no port of pool"):
        take(store, context)


def test_fences_grow_across_flushall_even_when_the_clock_is_behind(store):
    context = make_context()
    lease = take(store, context)
    ahead = lease.fence + 3_600_000_000
    store.client.hset("alloc:{sdk-v2}", "fence", ahead)
    store.drive(release(context, [lease]))
    lease = take(store, context)
    assert lease.fence == ahead + 1
    store.client.flushall()
    (outcome,) = again(store, context, lease)
    assert outcome.lease.fence == ahead + 2
    assert take(store, context, STRIPE).fence == ahead + 3


def test_a_lost_reply_of_a_re_assertion_costs_no_fence(store):
    context = make_context()
    lease = take(store, context)
    store.client.flushall()
    (unheard,) = again(store, context, lease)
    before = store.dump()
    (heard,) = again(store, context, lease)
    assert_same_state(before, store.dump())
    assert heard.lease.fence == unheard.lease.fence > lease.fence
    assert live(store)[0].fence == heard.lease.fence


def test_a_custom_pool_is_restored_by_whoever_knew_it(store):
    context = make_context()
    pool = PoolSpec(name="mine", first=7001, last=7004, conventional={"email": (7003,)}, cooldown_ms=7_000)
    store.drive(apply_pool(pool))
    lease = take(store, context, pool="mine")
    store.client.flushall()
    (outcome,) = again(store, context, lease)
    assert outcome.reasserted
    assert store.drive(read_pool("mine")) == pool


def test_a_custom_pool_that_nobody_knows_any_more_is_missing(store):
    pool = PoolSpec(name="mine", first=7001, last=7004)
    store.drive(apply_pool(pool))
    lease = take(store, make_context(), pool="mine")
    store.client.flushall()
    with pytest.raises(PoolMissingError):
        again(store, make_context(), lease)


def test_a_renewal_from_another_host_after_data_loss_does_not_take_the_hosts_name(store):
    here, there = make_context(), make_context("web-2", machine="m2")
    lease = take(store, here)
    store.client.flushall()
    (outcome,) = again(store, there, lease)
    assert outcome.reasserted
    assert take(store, here, STRIPE).host == "web-1"


def test_a_port_that_a_newcomer_declined_goes_back_to_its_holder(store):
    context = make_context()
    lease = take(store, context)
    store.client.flushall()
    store.refused = {5556}
    with pytest.raises(Exception, match="has it bound"):
        take(store, context, WorkerId("org-2", "email"), port=5556)
    (outcome,) = again(store, context, lease)
    assert outcome.reasserted
    assert live(store)[0].worker == EMAIL


@pytest.mark.parametrize("end", [release, decline])
def test_a_lease_that_its_holder_ended_does_not_come_back_because_a_later_one_was_declined(store, end):
    context = make_context()
    lease = take(store, context, port=5570)
    store.drive(end(context, [lease]))
    store.advance(HOUR)
    store.refused = {5570}
    with pytest.raises(Exception, match="has it bound"):
        take(store, context, WorkerId("org-2", "email"), port=5570)
    (outcome,) = again(store, context, lease)
    assert "has ended" in str(outcome.lost)
    assert live(store) == []


def test_a_newcomer_that_kept_the_port_after_data_loss_keeps_it(store):
    context = make_context()
    lease = take(store, context)
    store.client.flushall()
    take(store, context, WorkerId("org-2", "email"))
    (outcome,) = again(store, context, lease)
    assert "org-2/email#0 has web-1:5556 now" in str(outcome.lost)


def snapshot(store):
    return {key: (store.client.dump(key), max(0, store.client.pttl(key))) for key in store.key_names()}


def restore(store, saved):
    store.client.flushall()
    for key, (value, ttl) in saved.items():
        store.client.restore(key, ttl, value)


def test_a_failover_to_older_data_costs_no_newer_holder_its_port(store):
    context = make_context()
    older = take(store, context)
    saved = snapshot(store)
    store.drive(release(context, [older]))
    newer = take(store, context)
    assert newer.port == older.port
    restore(store, saved)
    (outcome,) = again(store, context, newer)
    assert outcome.reasserted
    assert outcome.lease.fence > newer.fence
    assert again(store, context, older)[0].lost
    assert "superseded" in store.event_types("sdk-v2")


def test_a_failover_to_older_data_costs_no_worker_that_moved_its_port(store):
    context = make_context()
    older = take(store, context)
    saved = snapshot(store)
    store.drive(release(context, [older]))
    newer = take(store, context, port=5590)
    restore(store, saved)
    (outcome,) = again(store, context, newer)
    assert outcome.reasserted
    assert [(lease.port, lease.fence) for lease in live(store)] == [(5590, outcome.lease.fence)]
    assert again(store, context, older)[0].lost


def test_a_re_assertion_over_an_unseen_end_leaves_no_index_behind(store):
    context = make_context()
    older = take(store, context, WorkerId("org-9", "email"))
    saved = snapshot(store)
    store.drive(release(context, [older]))
    store.advance(HOUR)
    newer = take(store, context, EMAIL)
    assert newer.port == older.port
    restore(store, {key: value for key, value in saved.items() if ":lease:" not in key})
    assert again(store, context, newer)[0].reasserted
    assert "alloc:{sdk-v2}:service:email:org-9" not in store.key_names()


def test_one_lease_twice_in_a_batch_is_renewed_once(store):
    context = make_context()
    lease = take(store, context)
    store.client.flushall()
    first, second = again(store, context, lease, lease)
    assert first.reasserted
    assert (first.lease.fence, second.lease.fence) == (live(store)[0].fence,) * 2
    assert store.event_types("sdk-v2") == ["pool", "reasserted"]


def test_a_stale_copy_in_the_batch_does_not_cost_the_newer_lease_of_its_port(store):
    context = make_context()
    stale = take(store, context)
    newer = take(store, context, supersede_fence=stale.fence)
    assert newer.port == stale.port
    for lost in (False, True):
        if lost:
            store.client.flushall()
        first, second = again(store, context, stale, newer)
        assert first.lost
        assert not second.lost
        assert second.reasserted is lost


def test_two_leases_of_one_worker_in_a_batch_are_not_both_re_asserted(store):
    context = make_context()
    older = take(store, context)
    newer = take(store, context, port=5590, supersede_fence=older.fence)
    store.client.flushall()
    first, second = again(store, context, older, newer)
    assert first.lost
    assert second.reasserted
    assert [lease.port for lease in live(store)] == [5590]


def raw_keep(store, lease, proof, *, namespace="web-1"):
    return store.run(ScriptCall("extend", script_keys(lease.pool, namespace), (lease.host, HOUR, proof, lease.port)))


@pytest.mark.parametrize("state", [*sorted(ENDED_STATES), "", "read", "READY"])
@pytest.mark.parametrize("lost", [False, True])
def test_a_state_that_is_not_a_live_one_is_not_written(store, state, lost):
    lease = take(store, make_context())
    if lost:
        store.client.delete(f"alloc:{{sdk-v2}}:lease:web-1:{lease.port}")
    before = store.dump()
    with pytest.raises(redis.ResponseError, match="called with arguments that portlease does not send"):
        raw_renew(store, lease, lease.token, state=state)
    assert_same_state(before, store.dump())


@pytest.mark.parametrize("state", sorted(LIVE_STATES))
def test_every_live_state_is_written(store, state):
    lease = take(store, make_context())
    raw_renew(store, lease, lease.token, state=state)
    assert [one.state for one in live(store)] == [state]


NO_PROOFS = ["", " ", "{fence}", "{fence} ", "{fence} {half}", "{fence}  ", "{token} ", "%d+ %x+ "]


@pytest.mark.parametrize("proof", NO_PROOFS)
def test_a_heartbeat_without_the_whole_proof_extends_nothing(store, proof):
    lease = take(store, make_context())
    before = store.dump()
    given = proof.format(fence=lease.fence, token=lease.token, half=lease.token[:16])
    with pytest.raises(redis.ResponseError, match="called with arguments that portlease does not send"):
        raw_keep(store, lease, given)
    assert raw_keep(store, lease, given.ljust(PROOF_LENGTH))[3:] == [1]
    assert_same_state(before, store.dump())


def test_a_lease_whose_proof_is_of_another_length_is_decided_one_by_one(store):
    context = make_context()
    held = take(store, context)
    odd = replace(take(store, context, WorkerId("o", "p", 1)), token="abc")
    outcomes = again(store, context, odd, held)
    assert [bool(outcome.lost) for outcome in outcomes] == [True, False]


@pytest.mark.parametrize("end", [release, decline])
def test_a_heartbeat_extends_nothing_that_has_ended(store, end):
    context = make_context()
    lease = take(store, context)
    store.drive(end(context, [lease]))
    before = store.dump()
    assert raw_keep(store, lease, f"{lease.fence} {lease.token} ")[3:] == [1]
    assert_same_state(before, store.dump())


def test_a_heartbeat_extends_those_that_live_and_names_those_that_do_not(store):
    context = make_context()
    held = [take(store, context, WorkerId("o", "p", i), ttl_ms=60_000) for i in range(4)]
    store.client.delete("alloc:{sdk-v2}:lease:web-1:" + str(held[1].port))
    store.calls.clear()
    outcomes = again(store, context, *held, replace(held[2], token="f" * 32))
    assert [call.script for call in store.calls] == ["extend", "renew"]
    assert [outcome.reasserted for outcome in outcomes] == [False, True, False, False, False]
    assert [bool(outcome.lost) for outcome in outcomes] == [False, False, False, False, True]
    assert [lease.port for lease in live(store)] == [lease.port for lease in held]


def test_leases_of_different_ttls_each_get_their_own(store):
    context = make_context()
    held = [take(store, context, WorkerId("o", "p", i), ttl_ms=10_000 * (i + 1)) for i in range(3)]
    store.advance(5 * SECOND)
    outcomes = again(store, context, *held)
    for lease, outcome in zip(held, outcomes, strict=True):
        left = store.client.pttl(f"alloc:{{sdk-v2}}:lease:web-1:{lease.port}")
        assert lease.ttl_ms - 1_000 < left <= lease.ttl_ms
        assert outcome.lease.port == lease.port
        assert outcome.lease.deadline == 1_000.0 + lease.ttl_ms / 1_000


def test_the_reaper_need_not_visit_a_host_whose_leases_are_all_kept(store):
    context = make_context()
    held = [take(store, context, WorkerId("o", "p", i)) for i in range(3)]
    store.advance(20 * SECOND)
    again(store, context, *held)
    assert 29 < store.drive(reap("sdk-v2")).next_s <= 30


def test_the_reaper_comes_for_a_lease_that_is_not_kept_beside_others_that_are(store):
    context = make_context()
    held, left = take(store, context, EMAIL), take(store, context, STRIPE)
    store.advance(20 * SECOND)
    again(store, context, held)
    assert store.drive(reap("sdk-v2")).next_s <= 10
    store.advance(11 * SECOND)
    again(store, context, held)
    assert store.drive(reap("sdk-v2")).closed == 1
    assert [lease.port for lease in live(store)] == [held.port] != [left.port]


def test_an_end_that_no_event_reports_yet_is_not_put_off_by_a_heartbeat(store):
    context = make_context()
    held = take(store, context, EMAIL, ttl_ms=2 * 60 * SECOND)
    take(store, context, STRIPE)
    store.advance(60 * SECOND)  # its grace has passed too: it is not ahead of anybody any more
    again(store, context, held)
    assert store.drive(reap("sdk-v2")).closed == 1


def test_the_reaper_comes_sooner_for_a_lease_whose_ttl_got_shorter(store):
    context = make_context()
    lease = take(store, context, ttl_ms=60 * 60 * SECOND)
    again(store, context, replace(lease, ttl_ms=10 * SECOND))
    assert store.drive(reap("sdk-v2")).next_s <= 10


def test_the_address_of_a_worker_whose_lease_is_kept_never_runs_out(store):
    context = make_context()
    lease = take(store, context, ttl_ms=2 * HOUR)  # written anew once an hour: with this TTL at every renewal
    location = "alloc:{sdk-v2}:worker:org-1/email#0"
    store.client.pexpire(location, 5_000)
    again(store, context, lease)
    assert store.client.pttl(location) > 24 * HOUR


def test_a_heartbeat_of_a_lease_that_is_gone_leaves_its_workers_newer_address_alone(store):
    context, elsewhere = make_context(), make_context("web-2", machine="m2")
    older = take(store, context, ttl_ms=2 * HOUR)
    store.client.delete("alloc:{sdk-v2}:lease:web-1:5556")
    newer = take(store, elsewhere, ttl_ms=2 * HOUR)
    (outcome,) = again(store, context, older)
    assert "org-1/email#0 has web-2:" in str(outcome.lost)
    assert take(store, elsewhere, token=newer.token).address == newer.address


def test_a_heartbeat_learns_that_its_host_is_draining(store):
    from allocator.operations.hosts import drain

    context = make_context()
    lease = take(store, context)
    store.drive(drain("sdk-v2", "web-1"))
    (outcome,) = again(store, context, lease)
    assert outcome.draining
