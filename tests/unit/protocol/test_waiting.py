"""The line of those who wait: first come, first served, nobody overtakes, the dead are passed by."""

from __future__ import annotations

from dataclasses import replace

import pytest
from scripted_redis import MINUTE, claim, claim_several, error_of, make_context

from allocator.model.errors import ExhaustedError, HeldError, LimitError
from allocator.model.names import WorkerId
from allocator.model.pools import PoolSpec
from allocator.operations.attempt import ClaimRequest, Waiting
from allocator.operations.end import decline, release
from allocator.operations.listing import reap
from allocator.operations.pools import apply_pool
from allocator.operations.queue import join, leave
from allocator.protocol.keys import waiter_keys

POOL = "p"


@pytest.fixture(params=["host", "fleet"])
def full(request, store):
    """A pool of two ports, both leased."""
    store.drive(apply_pool(PoolSpec(name=POOL, first=7001, last=7002, scope=request.param, cooldown_ms=0)))
    context = make_context()
    return context, [store.drive(claim(context, asked(number))) for number in range(2)]


def asked(number, *, org="o", port=None, priority=0, ticket="", plugin="p"):
    return ClaimRequest(pool=POOL, worker=WorkerId(org, plugin, number), port=port, priority=priority, ticket=ticket)


def stand(store, context, number, *, condition=None, **arguments):
    """Join the queue; the ticket is the number."""
    waiting = waiter(number, **arguments)
    return store.drive(join(context, replace(waiting, condition=condition or waiting.condition))).position


def waiter(number, *, contiguous=False, position=None, **arguments):
    request = replace(asked(number, **arguments), contiguous=contiguous)
    return replace(Waiting.of(request, ticket(number)), position=position)


def ticket(number):
    return f"{number:016x}"


def try_claim(store, context, number, **arguments):
    return error_of(lambda: store.drive(claim(context, asked(number, ticket=ticket(number), **arguments))))


def reported(store, number):
    return bool(store.client.llen(waiter_keys(POOL, ticket(number))[1]))


def die(store, number):
    store.client.delete(waiter_keys(POOL, ticket(number))[0])


def be_passed_by(store, context, number):
    """Be silent for so long that another takes the ticket out of the line."""
    die(store, number)
    stand(store, context, 99)
    store.drive(leave(context, asked(99), ticket(99)))


def test_the_first_in_the_queue_gets_the_port_and_nobody_overtakes(store, full):
    context, held = full
    assert [stand(store, context, number).ahead for number in (10, 11, 12)] == [0, 1, 2]
    store.drive(release(context, [held[0]]))
    newcomer = error_of(lambda: store.drive(claim(context, asked(99))))
    assert isinstance(newcomer, ExhaustedError)
    assert "3 others wait for a port of pool p on web-1; wait in the queue" in str(newcomer)
    assert isinstance(try_claim(store, context, 12), ExhaustedError)
    assert isinstance(try_claim(store, context, 11), ExhaustedError)
    assert try_claim(store, context, 10) is None
    store.drive(release(context, [held[1]]))
    assert isinstance(try_claim(store, context, 12), ExhaustedError)
    assert try_claim(store, context, 11) is None
    queued = [event["worker"] for event in store.events(POOL) if event["type"] == "queued"]
    granted = [event["worker"] for event in store.events(POOL) if event["type"] == "granted"]
    assert granted[2:] == queued[:2]


def test_a_release_wakes_the_first_and_a_grant_wakes_the_next(store, full):
    context, held = full
    for number in (10, 11, 12):
        stand(store, context, number)
    store.drive(release(context, [held[0]]))
    assert [reported(store, number) for number in (10, 11, 12)] == [True, False, False]
    assert try_claim(store, context, 10) is None
    assert [reported(store, number) for number in (10, 11, 12)] == [False, True, False]


def test_the_worker_that_released_is_a_newcomer_as_well(store, full):
    context, held = full
    stand(store, context, 10)
    store.drive(release(context, [held[0]]))
    assert isinstance(error_of(lambda: store.drive(claim(context, asked(0)))), ExhaustedError)


def test_higher_priorities_stand_before_lower_ones_and_in_order_among_themselves(store, full):
    context, held = full
    for number, priority in ((10, 0), (11, 5), (12, 5), (13, 9)):
        stand(store, context, number, priority=priority)
    order = []
    for lease in held:
        store.drive(release(context, [lease]))
        order += [number for number in (10, 11, 12, 13) if try_claim(store, context, number) is None]
    assert order == [13, 11]


def test_a_waiter_that_died_is_passed_by_and_taken_out(store, full):
    context, held = full
    for number in (10, 11):
        stand(store, context, number)
    die(store, 10)
    store.drive(release(context, [held[0]]))
    assert try_claim(store, context, 11) is None
    store.drive(release(context, [held[1]]))
    assert error_of(lambda: store.drive(claim(context, asked(99)))) is None
    assert not store.client.exists(*[f"alloc:{{{POOL}}}:waiters:{namespace}" for namespace in ("*", "web-1")])
    stand(store, context, 13)
    namespace = "*" if store.client.exists(f"alloc:{{{POOL}}}:ports:*") else "web-1"
    assert store.client.zrange(f"alloc:{{{POOL}}}:waiters:{namespace}", 0, -1) == [ticket(13).encode()]


def test_who_is_behind_need_not_wait_where_there_are_ports_for_all_ahead(store, full):
    context, held = full
    assert [stand(store, context, number).ahead for number in (10, 11, 12)] == [0, 1, 2]
    store.drive(release(context, held))
    # 10 may have died just now: it holds up one of the two ports, and not the whole queue.
    assert try_claim(store, context, 12) is not None
    assert try_claim(store, context, 99) is not None
    assert stand(store, context, 11).ahead == 0
    assert try_claim(store, context, 11) is None
    assert try_claim(store, context, 12) is not None
    assert try_claim(store, context, 10) is None


def test_ports_that_programs_listen_on_are_none_for_those_ahead(store, full):
    context, held = full
    stand(store, context, 10)
    store.drive(release(context, held))
    store.listening.add(held[0].port)
    assert isinstance(error_of(lambda: store.drive(claim(context, asked(99)))), ExhaustedError)
    store.listening.clear()
    assert error_of(lambda: store.drive(claim(context, asked(99)))) is None


def test_a_leased_port_that_its_worker_listens_on_is_counted_once(store):
    store.drive(apply_pool(PoolSpec(name=POOL, first=7001, last=7004, cooldown_ms=0)))
    context = make_context()
    held = [store.drive(claim(context, asked(number))) for number in range(4)]
    store.listening.update(lease.port for lease in held[2:])
    stand(store, context, 10)
    store.drive(release(context, held[:2]))
    assert error_of(lambda: store.drive(claim(context, asked(99)))) is None
    assert isinstance(error_of(lambda: store.drive(claim(context, asked(98)))), ExhaustedError)


def test_who_waits_for_two_ports_needs_two_of_those_that_are_free(store, full):
    context, held = full
    two = replace(asked(10), names=("http", "debug"))
    store.drive(join(context, Waiting.of(two, ticket(10))))
    store.drive(release(context, held))
    assert isinstance(error_of(lambda: store.drive(claim(context, asked(99)))), ExhaustedError)
    assert try_several(store, context, 10) is None


def test_an_end_wakes_the_next_where_one_that_was_woken_has_not_looked(store, full):
    context, held = full
    for number in (10, 11, 12):
        stand(store, context, number)
    store.drive(release(context, [held[0]]))
    assert [reported(store, number) for number in (10, 11, 12)] == [True, False, False]
    store.drive(release(context, [held[1]]))
    assert [reported(store, number) for number in (10, 11, 12)] == [True, True, False]


def test_a_waiter_lives_for_less_than_two_seconds_without_a_sign(store, full):
    context, _ = full
    stand(store, context, 10)
    assert 0 < store.client.pttl(waiter_keys(POOL, ticket(10))[0]) < 2_000


def test_one_that_comes_back_in_time_has_its_position_again(store, full):
    context, held = full
    first = stand(store, context, 10)
    stand(store, context, 11)
    die(store, 10)
    stand(store, context, 12)  # takes it out
    again = store.drive(join(context, waiter(10, position=first))).position
    assert (again.position, again.ahead) == (first.position, 0)
    store.drive(release(context, [held[0]]))
    assert isinstance(try_claim(store, context, 11), ExhaustedError)
    assert try_claim(store, context, 10) is None


def test_who_leaves_lets_the_next_look(store, full):
    context, held = full
    for number in (10, 11):
        stand(store, context, number)
    store.drive(leave(context, asked(10), ticket(10)))
    assert reported(store, 11)
    store.drive(release(context, [held[0]]))
    assert try_claim(store, context, 11) is None


def test_who_waits_for_one_port_keeps_nobody_from_another(store, full):
    context, held = full
    stand(store, context, 10, port=held[1].port)
    stand(store, context, 11)
    store.drive(release(context, [held[0]]))
    assert isinstance(try_claim(store, context, 10, port=held[1].port), HeldError)
    assert try_claim(store, context, 11) is None
    store.drive(release(context, [held[1]]))
    assert isinstance(error_of(lambda: store.drive(claim(context, asked(99)))), ExhaustedError)
    assert try_claim(store, context, 10, port=held[1].port) is None


def test_who_waits_for_any_port_comes_before_a_newcomer_for_a_certain_one(store, full):
    context, held = full
    stand(store, context, 10)
    store.drive(release(context, [held[0]]))
    newcomer = asked(99, port=held[0].port)
    assert isinstance(error_of(lambda: store.drive(claim(context, newcomer))), ExhaustedError)


def test_who_is_held_back_by_a_limit_holds_back_nobody(store, full):
    context, held = full
    stand(store, context, 10, condition="org")
    store.drive(release(context, [held[0]]))
    assert reported(store, 10)
    assert error_of(lambda: store.drive(claim(context, asked(99)))) is None


def test_who_comes_back_to_a_queue_that_was_lost_stands_before_all_who_come_after(store, full):
    context, held = full
    early = [stand(store, context, number) for number in (10, 11, 12)][2]
    store.client.delete(
        *(key for key in store.key_names() if ":waiter" in key or key.endswith((":host:web-1", ":host:*")))
    )
    store.drive(join(context, waiter(12, position=early)))
    assert stand(store, context, 20).ahead == 1
    store.drive(release(context, [held[0]]))
    assert isinstance(try_claim(store, context, 20), ExhaustedError)
    assert try_claim(store, context, 12) is None


@pytest.mark.parametrize("condition", ["org", "plugin", "instances", "worker"])
@pytest.mark.parametrize("silent", [False, True])
def test_who_was_held_back_and_got_a_port_leaves_that_queue_too(store, full, condition, silent):
    context, held = full
    stand(store, context, 10, condition=condition)
    assert any(":held:" in key for key in store.key_names())
    store.drive(release(context, [held[0]]))
    if silent:
        be_passed_by(store, context, 10)
    assert try_claim(store, context, 10) is None
    assert [key for key in store.key_names() if ":held:" in key or ":waiter" in key] == []


def test_the_lines_of_two_hosts_are_two(store):
    store.drive(apply_pool(PoolSpec(name=POOL, first=7001, last=7001, cooldown_ms=0)))
    here, there = make_context("web-1"), make_context("web-2")
    store.drive(claim(here, asked(0)))
    stand(store, here, 10)
    assert store.drive(claim(there, asked(1))).host == "web-2"


def test_without_waiters_nothing_of_the_queue_is_left_in_the_way(store, full):
    context, held = full
    stand(store, context, 10)
    die(store, 10)
    store.client.hset(f"alloc:{{{POOL}}}", "waiting", store.now_ms() - 1)
    store.drive(release(context, held))
    assert error_of(lambda: store.drive(claim(context, asked(99)))) is None


# --- several ports ---


def try_several(store, context, number, count=2, *, contiguous=False, newcomer=False):
    names = [f"n{at}" for at in range(count)]
    request = asked(number, ticket="" if newcomer else ticket(number))
    tokens = [context.new_token() for _ in names]
    return error_of(lambda: store.drive(claim_several(context, request, names, contiguous=contiguous, tokens=tokens)))


def test_who_waits_for_two_ports_gets_both_before_a_newcomer_gets_one(store, full):
    context, held = full
    assert [stand(store, context, number).ahead for number in (10, 11)] == [0, 1]
    store.drive(release(context, [held[0]]))
    assert reported(store, 10)
    shortage = try_several(store, context, 10)
    assert isinstance(shortage, ExhaustedError)
    assert 0 < shortage.retry_after <= 35  # when the lease that is in the way can have run out
    assert isinstance(error_of(lambda: store.drive(claim(context, asked(99)))), ExhaustedError)
    assert isinstance(try_several(store, context, 99, newcomer=True), ExhaustedError)
    assert isinstance(try_claim(store, context, 11), ExhaustedError)
    store.drive(release(context, [held[1]]))
    assert try_several(store, context, 10) is None
    assert reported(store, 11)
    assert stand(store, context, 11).ahead == 0


def test_who_waits_for_a_block_keeps_nobody_but_the_next_who_does(store, full):
    context, held = full
    assert stand(store, context, 10, contiguous=True).ahead == 0
    assert stand(store, context, 11, contiguous=True).ahead == 1
    assert stand(store, context, 12).ahead == 0
    store.drive(release(context, [held[0]]))
    assert [reported(store, number) for number in (10, 11, 12)] == [True, True, True]
    assert try_claim(store, context, 12) is None
    store.drive(release(context, [held[1]]))
    assert error_of(lambda: store.drive(claim(context, asked(99)))) is None
    store.client.delete(*store.client.keys("alloc:*:lease:*"), *store.client.keys("alloc:*:ports:*"))
    assert isinstance(try_several(store, context, 98, contiguous=True, newcomer=True), ExhaustedError)
    assert isinstance(try_several(store, context, 11, contiguous=True), ExhaustedError)
    assert try_several(store, context, 10, contiguous=True) is None


# --- those whom a limit holds back, over all hosts ---


@pytest.fixture
def limited(store):
    """A pool whose organisations may have one lease, which o has on web-1; and a caller on another host."""
    store.drive(apply_pool(PoolSpec(name=POOL, first=7001, last=7009, cooldown_ms=0, max_per_org=1)))
    here, there = make_context("web-1"), make_context("web-2", machine="m2")
    return here, there, store.drive(claim(here, asked(0)))


def test_the_end_of_a_lease_wakes_the_first_whom_the_limit_held_back_on_whatever_host(store, limited):
    here, there, held = limited
    assert [stand(store, there, number, condition="org").held for number in (10, 11)] == [0, 1]
    assert stand(store, there, 12, org="other", condition="org").held == 0
    store.drive(release(here, [held]))
    assert [reported(store, number) for number in (10, 11, 12)] == [True, False, False]
    assert try_claim(store, there, 10) is None


@pytest.mark.parametrize("end", ["decline", "expire"])
def test_a_lease_that_ends_otherwise_wakes_them_too(store, limited, end):
    here, there, held = limited
    stand(store, there, 10, condition="org")
    if end == "decline":
        store.drive(decline(here, [held]))
    else:
        store.advance(MINUTE)
        stand(store, there, 10, condition="org")
        store.drive(reap(POOL))
    assert reported(store, 10)


def test_nobody_takes_the_room_of_one_who_waits_for_the_limit(store, limited):
    here, there, held = limited
    for number in (10, 11):
        stand(store, there, number, condition="org")
    store.drive(release(here, [held]))
    newcomer = error_of(lambda: store.drive(claim(here, asked(99))))
    assert isinstance(newcomer, LimitError)
    assert "there are 0, and 2 wait for the next; release one" in str(newcomer)
    assert isinstance(try_claim(store, there, 11), LimitError)
    assert error_of(lambda: store.drive(claim(here, asked(1, org="other")))) is None
    assert try_claim(store, there, 10) is None


def test_a_grant_wakes_the_next_whom_the_limit_holds_back(store, limited):
    _here, there, _held = limited
    for number in (10, 11):
        stand(store, there, number, condition="org")
    store.drive(apply_pool(PoolSpec(name=POOL, first=7001, last=7009, cooldown_ms=0, max_per_org=3)))
    assert try_claim(store, there, 10) is None
    assert reported(store, 11)
    assert try_claim(store, there, 11) is None


def test_who_no_longer_waits_for_the_limit_keeps_no_room_and_wakes_the_next(store, limited):
    here, there, held = limited
    for number in (10, 11):
        stand(store, there, number, condition="org")
    store.drive(leave(there, asked(10), ticket(10)))
    assert reported(store, 11)
    stand(store, there, 11)  # it found that there is no port where it is
    store.drive(release(here, [held]))
    assert error_of(lambda: store.drive(claim(here, asked(99)))) is None


def test_a_higher_priority_comes_first_among_those_whom_a_limit_holds_back(store, limited):
    here, there, held = limited
    assert stand(store, there, 10, condition="org").held == 0
    assert stand(store, here, 11, condition="org", priority=5).held == 0
    store.drive(release(here, [held]))
    assert [reported(store, number) for number in (10, 11)] == [False, True]


def test_a_worker_that_starts_again_on_its_port_needs_no_room(store, limited):
    here, there, held = limited
    stand(store, there, 10, condition="org")
    request = replace(asked(0), supersede_fence=held.fence)
    assert error_of(lambda: store.drive(claim(here, request))) is None


def test_a_worker_that_has_a_lease_elsewhere_learns_when_it_ends(store, limited):
    here, there, held = limited
    stand(store, there, 0, condition="worker")
    store.drive(release(here, [held]))
    assert reported(store, 0)


def test_limits_of_a_plugin_and_of_a_service_have_lines_of_their_own(store):
    store.drive(apply_pool(PoolSpec(name=POOL, first=7001, last=7009, max_per_plugin=1)))
    here, there = make_context("web-1"), make_context("web-2", machine="m2")
    held = store.drive(claim(here, asked(0)))
    stand(store, there, 10, org="x", condition="plugin")
    stand(store, there, 11, org="x", plugin="q", condition="plugin")
    stand(store, there, 12, condition="instances")
    store.drive(release(here, [held]))
    assert [reported(store, number) for number in (10, 11, 12)] == [True, False, True]


@pytest.mark.parametrize("condition", ["org", "plugin", "instances", "worker"])
@pytest.mark.parametrize("silent", [False, True])
def test_nothing_of_a_queue_is_left_when_its_waiter_has_gone(store, limited, condition, silent):
    _here, there, _held = limited
    stand(store, there, 10, condition=condition)
    if silent:
        be_passed_by(store, there, 10)
    store.drive(leave(there, asked(10), ticket(10)))
    assert not store.client.keys("alloc:*:held:*")
