"""Several ports for one worker: all or none, contiguous where asked, each a lease like any other."""

from __future__ import annotations

import pytest
from scripted_redis import MINUTE, claim, claim_several, error_of, make_context

from allocator.model.errors import (
    CordonedError,
    ExhaustedError,
    HeldError,
    InvalidInputError,
    LimitError,
)
from allocator.model.names import WorkerId
from allocator.model.pools import PoolSpec
from allocator.model.states import LeaseState
from allocator.operations.attempt import ClaimRequest
from allocator.operations.end import release
from allocator.operations.listing import cordon, leases
from allocator.operations.pools import apply_pool
from allocator.operations.renew import renew
from allocator.operations.resolve import endpoints

POOL = "p"
NAMES = ("http", "debug", "metrics")


def rules(**arguments):
    return PoolSpec(**{"name": POOL, "first": 7001, "last": 7010, "cooldown_ms": 0} | arguments)


@pytest.fixture(params=["host", "fleet"])
def scope(request, store):
    store.drive(apply_pool(rules(scope=request.param)))
    return request.param


def several(store, context, names=NAMES, *, number=0, contiguous=False, tokens=None, plugin="email", **arguments):
    request = ClaimRequest(pool=POOL, worker=WorkerId("o", plugin, number), **arguments)
    tokens = tokens or [context.new_token() for _ in names]
    return store.drive(claim_several(context, request, names, contiguous=contiguous, tokens=tokens))


def one(store, context, number, **arguments):
    return store.drive(claim(context, ClaimRequest(pool=POOL, worker=WorkerId("x", "p", number), **arguments)))


def test_each_name_gets_a_port_and_each_port_is_a_lease(store, scope):
    context = make_context()
    held = several(store, context, state=LeaseState.READY)
    assert [str(lease.worker) for lease in held] == ["o/email#0", "o/email+debug#0", "o/email+metrics#0"]
    assert len({lease.port for lease in held}) == 3
    assert len({lease.fence for lease in held}) == 3
    assert [lease.worker for lease in store.drive(leases(POOL))] == [lease.worker for lease in held]
    assert not any(outcome.lost for outcome in store.drive(renew(context, held)))
    assert [found.port for found in store.drive(endpoints(POOL, "email", "o"))] == [held[0].port]
    assert [found.port for found in store.drive(endpoints(POOL, "email+debug", "o"))] == [held[1].port]
    assert store.drive(release(context, held)) == [True] * 3
    assert store.drive(leases(POOL)) == []


def test_the_same_tokens_get_the_same_leases_and_others_none(store, scope):
    context = make_context()
    tokens = [context.new_token() for _ in NAMES]
    first = several(store, context, tokens=tokens)
    again = several(store, context, tokens=tokens)
    assert [lease.fence for lease in again] == [lease.fence for lease in first]
    assert isinstance(error_of(lambda: several(store, context)), HeldError)
    assert len(store.drive(leases(POOL))) == 3


def test_when_there_are_too_few_none_is_leased(store, scope):
    context = make_context()
    for number in range(8):
        one(store, context, number)
    before = store.dump()
    assert isinstance(error_of(lambda: several(store, context)), ExhaustedError)
    assert store.dump().keys() == before.keys()
    assert len(several(store, context, NAMES[:2])) == 2


def test_contiguous_ports_follow_each_other_or_there_are_none(store, scope):
    context = make_context()
    for port in (7002, 7005, 7009):
        one(store, context, port, port=port)
    held = several(store, context, contiguous=True)
    assert [lease.port for lease in held] == [7006, 7007, 7008]
    assert isinstance(error_of(lambda: several(store, context, number=1, contiguous=True)), ExhaustedError)
    assert [lease.port for lease in several(store, context, NAMES[:2], number=1, contiguous=True)] == [7003, 7004]


def test_who_comes_back_has_the_ports_again_that_it_had(store, scope):
    context = make_context()
    first = several(store, context, contiguous=True)
    second = several(store, context, number=1)
    store.drive(release(context, first))
    assert [lease.port for lease in several(store, context, contiguous=True)] == [lease.port for lease in first]
    store.drive(release(context, second))
    store.advance(MINUTE)
    assert [lease.port for lease in several(store, context, number=1)] == [lease.port for lease in second]


def test_a_block_is_found_far_into_a_wide_pool_and_past_strangers(store):
    store.drive(apply_pool(rules(first=1_000, last=12_000)))
    context = make_context()
    store.client.zadd("alloc:{p}:ports:web-1", {str(port): store.now_ms() + 10**6 for port in range(1_000, 11_000)})
    store.listening = {11_001, 11_004}
    assert [lease.port for lease in several(store, context, contiguous=True)] == [11_005, 11_006, 11_007]
    assert {lease.port for lease in several(store, context, number=1)} == {11_000, 11_002, 11_003}


def test_conventional_ports_and_bands_of_others_are_left_alone_or_spilled_into(store):
    store.drive(apply_pool(rules(conventional={"email": (7001,), "x": (7002,)}, bands={"stripe": (7003, 7008)})))
    context = make_context()
    first = several(store, context)
    assert [lease.port for lease in first] == [7001, 7009, 7010]
    assert isinstance(error_of(lambda: several(store, context, NAMES[:2], number=1)), ExhaustedError)
    assert [lease.port for lease in several(store, context, NAMES[:1], number=1)] == [7002]
    store.drive(apply_pool(rules(conventional={"x": (7001, 7002)}, bands={"stripe": (7003, 7008)}, spill=False)))
    context.rules.clear()
    store.drive(release(context, first))
    assert isinstance(error_of(lambda: several(store, context, number=2)), ExhaustedError)


def test_ports_of_other_plugins_come_last_the_highest_first_and_into_a_block_only_where_no_other_is(store):
    store.drive(apply_pool(rules(conventional={"x": (7001, 7002, 7003), "y": (7008,)})))
    context = make_context()
    assert [lease.port for lease in several(store, context, contiguous=True)] == [7004, 7005, 7006]
    assert [lease.port for lease in several(store, context, number=1)] == [7007, 7009, 7010]
    assert [lease.port for lease in several(store, context, NAMES[:2], number=2)] == [7008, 7003]
    assert [lease.port for lease in several(store, context, NAMES[:2], number=3, contiguous=True)] == [7001, 7002]


def test_a_port_that_the_kernel_refuses_is_declined_and_the_others_are_given_back(store, scope):
    context = make_context()
    store.refused = {7002}
    assert {lease.port for lease in several(store, context)} == {7001, 7003, 7004}
    assert [event["port"] for event in store.events(POOL) if event["type"] == "declined"] == ["7002"]
    assert len(store.drive(leases(POOL))) == 3


def test_limits_count_each_port(store, scope):
    store.drive(apply_pool(rules(scope=scope, max_per_org=5, max_per_plugin=4)))
    context = make_context()
    several(store, context)
    assert isinstance(error_of(lambda: several(store, context, NAMES[:2], number=1)), LimitError)
    assert len(several(store, context, NAMES[:1], number=1)) == 1
    assert isinstance(error_of(lambda: several(store, context, NAMES[:2], plugin="stripe")), LimitError)


def test_a_cordoned_host_gives_out_none(store, scope):
    context = make_context()
    several(store, context)
    store.drive(cordon(POOL, "web-1", on=True))
    assert isinstance(error_of(lambda: several(store, context, number=1)), CordonedError)


def test_ports_of_leases_that_ended_unseen_are_closed_first(store, scope):
    context = make_context()
    for number in range(10):
        one(store, context, number)
    store.advance(MINUTE)
    several(store, context)
    assert store.event_types(POOL)[-6:] == ["expired"] * 3 + ["granted"] * 3


@pytest.mark.parametrize("names", [[], ["a", "a"], ["a b"], [""], [str(number) for number in range(17)], ["a+b"]])
def test_names_that_are_none_are_refused(store, names):
    context = make_context()
    with pytest.raises(InvalidInputError):
        several(store, context, names)
