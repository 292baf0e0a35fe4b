"""The plan of heartbeats: when a renewal that Redis did not answer is tried again."""

from __future__ import annotations

import threading
from unittest.mock import Mock

import pytest

from allocator.client.heartbeats import HeartbeatPlan, HeldLease
from allocator.client.session import Session
from allocator.model.errors import StoreUnavailableError
from allocator.model.leases import Lease
from allocator.model.names import WorkerId
from allocator.model.states import ENDED_STATES, LeaseState

TTL_S = 100.0


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def plan(clock: Clock) -> HeartbeatPlan[threading.Event]:
    """The plan of a holder that claimed just now, and is never lucky with its jitter."""
    session = Session(host="web-1", clock=clock, rng=Mock(uniform=lambda _least, most: most))
    made: HeartbeatPlan[threading.Event] = HeartbeatPlan(session)
    lease = Lease(
        pool="sdk-v2", host="web-1", port=5556, worker=WorkerId("org", "email"), fence=1, state=LeaseState.READY,
        ttl_ms=int(TTL_S * 1_000), granted_at=0.0, expires_at=TTL_S, token="1" * 32, deadline=clock() + TTL_S,
    )  # fmt: skip
    made.add(HeldLease(lease, threading.Event(), threading.Event()))
    return made


def pauses(plan: HeartbeatPlan[threading.Event], clock: Clock, count: int) -> list[float]:
    """Fail so often, waiting as the plan says; return the pauses."""
    found = []
    for _ in range(count):
        plan.fail(StoreUnavailableError("away"))
        found.append(plan.seconds_to_wait() or 0.0)
        clock.now += found[-1]
    return found


def test_a_failed_renewal_is_tried_again_later_and_later(plan: HeartbeatPlan[threading.Event], clock: Clock) -> None:
    clock.now += plan.seconds_to_wait() or 0.0
    assert clock.now == pytest.approx(1_000 + 0.55 * TTL_S)
    assert pauses(plan, clock, 4) == pytest.approx([2, 4, 5, 5])


@pytest.mark.parametrize("state", sorted(ENDED_STATES))
def test_a_held_lease_is_not_set_to_an_ended_state(plan: HeartbeatPlan[threading.Event], state: LeaseState) -> None:
    (held,) = plan.held
    before = held.lease
    with pytest.raises(ValueError, match=f"cannot be {state}; release or decline it"):
        held.set(state=state, labels={"a": "b"})
    assert held.lease == before
    assert not held.rewrite


def test_it_is_urgent_from_t2_until_the_deadline(plan: HeartbeatPlan[threading.Event], clock: Clock) -> None:
    pauses(plan, clock, 3)
    clock.now = 1_000 + 0.875 * TTL_S
    assert pauses(plan, clock, 2) == pytest.approx([2, 2])
    clock.now = 1_000 + TTL_S
    assert pauses(plan, clock, 2) == pytest.approx([5, 5])
