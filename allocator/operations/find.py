"""Find: where workers are now, or how their last lease ended, and which other name of a host means this one."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

from allocator.operations.context import pool_rules
from allocator.operations.steps import Pause, Warn
from allocator.protocol.signatures.inspect import FindCall, InspectHostCall, Whereabouts
from allocator.protocol.wire import ask

if TYPE_CHECKING:
    from collections.abc import Sequence

    from allocator.model.names import WorkerId
    from allocator.model.pools import PoolSpec
    from allocator.operations.context import Context
    from allocator.operations.steps import Operation

BATCH = 256
"""Workers in one call: under 2 ms of server time."""

OVERDUE = 0.6
"""Who lives has renewed by this part of the TTL: holders begin at 0.55 of it at the latest."""

MAX_DOUBT_S = 30.0
"""How long a command waits to learn which machine has a lease; one with a longer TTL keeps it until its end."""


def find(pool: PoolSpec, workers: Sequence[WorkerId]) -> Operation[list[Whereabouts]]:
    """Return what Redis knows of workers, in their order."""
    namespace, found = pool.namespace_of("-"), list[Whereabouts]()
    for start in range(0, len(workers), BATCH):
        batch = tuple(str(worker) for worker in workers[start : start + BATCH])
        found += yield from ask(FindCall(pool=pool.name, namespace=namespace, workers=batch))
    return found


class Here(Enum):
    """What a host of another name is to this machine."""

    OTHER = "other"
    RENAMED = "renamed"
    """This one, in this boot, under the name that it had before: what ran there may run still."""
    ENDED = "ended"
    """This one before it, or its container, was started again: what ran there is gone."""


def is_here(context: Context, pool: str, host: str) -> Operation[Here]:
    """Return whether a host of another name is this one under the name that it had before.

    In the same boot it has the same network namespace. What was started again differs in one of the two, and so does a
    clone or a second container: what tells them apart is whether the other one still renews. Nothing may have been
    renewed since this one began, and a renewal has to be overdue, which is waited for.
    """
    if context.elsewhere:
        return Here.OTHER
    known = yield from ask(InspectHostCall(pool=pool, namespace=host))
    theirs, ours = known.identity.split()[:3], context.identity.split()
    if "-" in theirs or len(theirs) < 3 or theirs[0] != ours[0]:
        return Here.OTHER
    if theirs == ours:
        return Here.RENAMED
    for _ in range(2):
        due_s = yield from _overdue_in_s(context, pool, host)
        if due_s is None or due_s > MAX_DOUBT_S:
            break
        if due_s <= 0:
            return Here.ENDED
        yield Warn(
            f"host {host} may be this one, as it was called before it was started again, or one beside it; waiting "
            f"{due_s:.0f} s to see whether it still renews its leases"
        )
        yield Pause(due_s)
    return Here.OTHER


def _overdue_in_s(context: Context, pool: str, host: str) -> Operation[float | None]:
    """Return for how long a host's leases may still be renewed in time; None when one was, since this one began."""
    from allocator.operations.listing import known_ports

    rules = yield from pool_rules(context, pool)
    due_ms = 0.0
    for known in (yield from known_ports(pool, rules.namespace_of(host))):
        lease = known.lease
        if lease is None or lease.host != host:
            continue
        now_ms = known.claimable_at_ms - known.claimable_in_ms
        since_ms = now_ms - (lease.expires_at * 1_000 - lease.ttl_ms)
        if since_ms < context.alive_ms:
            return None
        due_ms = max(due_ms, lease.ttl_ms * OVERDUE - since_ms)
    return due_ms / 1_000
