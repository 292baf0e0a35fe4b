"""The line of those who wait: first come, first served, nobody overtakes, the dead are passed by."""

from __future__ import annotations

import pytest
from scripted_redis import error_of, make_context

from allocator.model.errors import ExhaustedError, HeldError
from allocator.model.names import WorkerId
from allocator.model.pools import PoolSpec
from allocator.protocol.claim import ClaimRequest, claim
from allocator.protocol.endings import release
from allocator.protocol.keys import waiter_keys
from allocator.protocol.pools import apply_pool
from allocator.protocol.waiting import join, leave

POOL = "p"


@pytest.fixture(params=["host", "fleet"])
def full(request, store):
    """A pool of two ports, both leased."""
    store.drive(apply_pool(PoolSpec(name=POOL, first=7001, last=7002, scope=request.param, cooldown_ms=0)))
    context = make_context()
    return context, [store.drive(claim(context, asked(number))) for number in range(2)]


def asked(number, *, org="o", port=None, priority=0, ticket="", plugin="p"):
    return ClaimRequest(pool=POOL, worker=WorkerId(org, plugin, number), port=port, priority=priority, ticket=ticket)


def stand(store, context, number, **words):
    """Join the line; the ticket is the number."""
    condition = words.pop("condition", "one" if words.get("port") else "any")
    return store.drive(join(context, asked(number, **words), ticket(number), condition, None))


def ticket(number):
    return f"{number:016x}"


def try_claim(store, context, number, **words):
    return error_of(lambda: store.drive(claim(context, asked(number, ticket=ticket(number), **words))))


def told(store, number):
    return bool(store.client.llen(waiter_keys(POOL, ticket(number))[1]))


def die(store, number):
    store.client.delete(waiter_keys(POOL, ticket(number))[0])


def test_the_first_in_line_gets_the_port_and_nobody_overtakes(store, full):
    context, held = full
    assert [stand(store, context, number).ahead for number in (10, 11, 12)] == [0, 1, 2]
    store.drive(release(context, [held[0]]))
    newcomer = error_of(lambda: store.drive(claim(context, asked(99))))
    assert isinstance(newcomer, ExhaustedError)
    assert "3 others wait for a port of pool p on web-1; join the line" in str(newcomer)
    assert isinstance(try_claim(store, context, 12), ExhaustedError)
    assert isinstance(try_claim(store, context, 11), ExhaustedError)
    assert try_claim(store, context, 10) is None
    store.drive(release(context, [held[1]]))
    assert isinstance(try_claim(store, context, 12), ExhaustedError)
    assert try_claim(store, context, 11) is None
    queued = [event["worker"] for event in store.events(POOL) if event["type"] == "queued"]
    granted = [event["worker"] for event in store.events(POOL) if event["type"] == "granted"]
    assert granted[2:] == queued[:2]


def test_a_release_tells_the_first_and_a_grant_tells_the_next(store, full):
    context, held = full
    for number in (10, 11, 12):
        stand(store, context, number)
    store.drive(release(context, [held[0]]))
    assert [told(store, number) for number in (10, 11, 12)] == [True, False, False]
    assert try_claim(store, context, 10) is None
    assert [told(store, number) for number in (10, 11, 12)] == [False, True, False]


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
    store.drive(release(context, held))
    for _ in range(2):
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
    stand(store, context, 13)
    space = "*" if store.client.exists(f"alloc:{{{POOL}}}:ports:*") else "web-1"
    assert store.client.zrange(f"alloc:{{{POOL}}}:waiters:{space}", 0, -1) == [ticket(13).encode()]


def test_a_waiter_lives_for_less_than_two_seconds_without_a_word(store, full):
    context, _ = full
    stand(store, context, 10)
    assert 0 < store.client.pttl(waiter_keys(POOL, ticket(10))[0]) < 2_000


def test_one_that_comes_back_in_time_has_its_place_again(store, full):
    context, held = full
    first = stand(store, context, 10)
    stand(store, context, 11)
    die(store, 10)
    stand(store, context, 12)  # takes it out
    again = store.drive(join(context, asked(10), ticket(10), "any", first))
    assert (again.place, again.ahead) == (first.place, 0)
    store.drive(release(context, [held[0]]))
    assert isinstance(try_claim(store, context, 11), ExhaustedError)
    assert try_claim(store, context, 10) is None


def test_who_leaves_lets_the_next_look(store, full):
    context, held = full
    for number in (10, 11):
        stand(store, context, number)
    store.drive(leave(context, asked(10), ticket(10)))
    assert told(store, 11)
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
    stand(store, context, 10, condition="limited")
    store.drive(release(context, [held[0]]))
    assert told(store, 10)
    assert error_of(lambda: store.drive(claim(context, asked(99)))) is None


def test_the_lines_of_two_hosts_are_two(store):
    store.drive(apply_pool(PoolSpec(name=POOL, first=7001, last=7001, cooldown_ms=0)))
    here, there = make_context("web-1"), make_context("web-2")
    store.drive(claim(here, asked(0)))
    stand(store, here, 10)
    assert store.drive(claim(there, asked(1))).host == "web-2"


def test_without_waiters_nothing_of_the_line_is_left_in_the_way(store, full):
    context, held = full
    stand(store, context, 10)
    die(store, 10)
    store.client.hset(f"alloc:{{{POOL}}}", "waiting", store.now_ms() - 1)
    store.drive(release(context, held))
    assert error_of(lambda: store.drive(claim(context, asked(99)))) is None
