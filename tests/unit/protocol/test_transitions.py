"""The scripts take a lease from state to state as the table has it: no other way, and each of its ways."""

from __future__ import annotations

import threading
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING

import pytest
from scripted_redis import MINUTE, claim, make_context

from allocator.client.heartbeats import HeldLease
from allocator.model.names import WorkerId
from allocator.model.pools import PoolSpec
from allocator.model.states import AFTER_UNCORDON, ENDED_STATES, LIVE_STATES, TRANSITIONS, LeaseState
from allocator.operations.attempt import ClaimRequest
from allocator.operations.end import decline, release
from allocator.operations.hosts import drain
from allocator.operations.listing import cordon, leases, reap
from allocator.operations.pools import apply_pool
from allocator.operations.renew import renew

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from scripted_redis import ScriptedRedis

    from allocator.model.leases import Lease

POOL = "p"
LIVE = sorted(LIVE_STATES)
Way = tuple[LeaseState, LeaseState]


@pytest.fixture
def lease_in(store: ScriptedRedis) -> Callable[[LeaseState], Lease]:
    """Lease a port for a worker of its own, in a state, on a host of its own."""
    store.drive(apply_pool(PoolSpec(name=POOL, first=7001, last=7009)))
    numbers = count()

    def lease_in(state: LeaseState) -> Lease:
        request = ClaimRequest(pool=POOL, worker=WorkerId("org-1", "email", next(numbers)), state=state)
        return store.drive(claim(context_of(f"web-{request.worker.instance}"), request))

    return lease_in


def context_of(host: str):
    return make_context(host, machine=f"m-{host}")


def written(store: ScriptedRedis, lease_in: Callable[[LeaseState], Lease]) -> Iterator[Way]:
    """Write each state over each, as a holder does; yield what came of it."""
    for before in LIVE:
        for wanted in LIVE:
            lease = lease_in(before)
            held = HeldLease(lease, threading.Event(), threading.Event())
            try:
                held.set(state=wanted)
            except ValueError:
                continue
            store.drive(renew(context_of(lease.host), [held.lease], rewrite=True))
            yield before, state_on(store, lease.host)


def drained(store: ScriptedRedis, lease_in: Callable[[LeaseState], Lease]) -> Iterator[Way]:
    """Drain a host with a lease of each state, and take it back."""
    for before in LIVE:
        host = lease_in(before).host
        store.drive(drain(POOL, host))
        yield before, state_on(store, host)
        store.drive(cordon(POOL, host, on=False))
        yield LeaseState.DRAINING, state_on(store, host)


def ended(store: ScriptedRedis, lease_in: Callable[[LeaseState], Lease]) -> Iterator[Way]:
    """End a lease of each state in each way; yield the end that became known."""
    for before in LIVE:
        for end in (release, decline):
            lease = lease_in(before)
            store.drive(end(context_of(lease.host), [lease]))
            yield before, LeaseState(store.events(POOL)[-1]["type"])
        lease_in(before)
        store.advance(30 * MINUTE)
        store.drive(reap(POOL))
        yield before, LeaseState(store.events(POOL)[-1]["type"])


def state_on(store: ScriptedRedis, host: str) -> LeaseState:
    (lease,) = store.drive(leases(POOL, host))
    return lease.state


def test_the_scripts_go_the_ways_of_the_table_and_no_other(store: ScriptedRedis, lease_in) -> None:
    gone = {
        (before, after)
        for road in (written, drained, ended)
        for before, after in road(store, lease_in)
        if before is not after
    }
    table = {(before, after) for before, following in TRANSITIONS.items() for after in following}
    assert gone == table | {(LeaseState.DRAINING, after) for after in AFTER_UNCORDON}


def test_a_lease_that_has_ended_is_brought_into_no_state(store: ScriptedRedis, lease_in) -> None:
    for state in LIVE:
        lease = lease_in(LeaseState.READY)
        store.drive(release(context_of(lease.host), [lease]))
        reported = store.drive(renew(context_of(lease.host), [replace(lease, state=state)], rewrite=True))
        assert reported[0].lost is not None
        assert store.drive(leases(POOL, lease.host)) == []
    assert not any(TRANSITIONS[state] for state in ENDED_STATES)
