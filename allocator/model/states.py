"""The states of a lease and what may follow what, as one table.

The client, the HTTP API, the tests and the diagram in `docs/reference/states.md` all read this table; to add a state,
add its row. A live state means that the lease's key exists; an ended state appears in events and in SQL only.
"""

from __future__ import annotations

from enum import StrEnum


class LeaseState(StrEnum):
    """Where a lease is in its life."""

    STARTING = "starting"
    READY = "ready"
    DEGRADED = "degraded"
    DRAINING = "draining"
    RELEASED = "released"
    DECLINED = "declined"
    EXPIRED = "expired"


STATES: dict[str, LeaseState] = {one.value: one for one in LeaseState}
ENDED_STATES = frozenset({LeaseState.RELEASED, LeaseState.DECLINED, LeaseState.EXPIRED})
LIVE_STATES = frozenset(set(LeaseState) - ENDED_STATES)

TRANSITIONS: dict[LeaseState, frozenset[LeaseState]] = {
    LeaseState.STARTING: ENDED_STATES | {LeaseState.READY, LeaseState.DEGRADED, LeaseState.DRAINING},
    LeaseState.READY: ENDED_STATES | {LeaseState.STARTING, LeaseState.DEGRADED, LeaseState.DRAINING},
    LeaseState.DEGRADED: ENDED_STATES | {LeaseState.STARTING, LeaseState.READY, LeaseState.DRAINING},
    LeaseState.DRAINING: ENDED_STATES | {LeaseState.STARTING},
    LeaseState.RELEASED: frozenset(),
    LeaseState.DECLINED: frozenset(),
    LeaseState.EXPIRED: frozenset(),
}
"""`ready`, `degraded` and `draining` go back to `starting` when a supervisor restarts the worker under the same lease;
on a host that is drained `draining` stays, whatever its holder writes."""

AFTER_UNCORDON = frozenset({LeaseState.STARTING, LeaseState.READY, LeaseState.DEGRADED})
"""What a lease that was drained with its host may be again once that host gives out ports: what it was before."""

EVENT_TYPES = (
    *("granted", "released", "declined", "expired", "superseded", "reasserted", "restored", "changed", "failed"),
    *("queued", "draining", "cordoned", "uncordoned", "registered", "forgotten", "recovering", "pool", "removed"),
)
"""What a pool's events can be: transitions of leases, then what is done with hosts, the queue and the pool."""
