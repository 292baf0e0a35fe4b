"""Release and decline: end leases, one batch per call."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from allocator.model.errors import HeldError
from allocator.model.leases import error_line
from allocator.operations.context import space_of
from allocator.operations.pools import pool_rules
from allocator.operations.renew import BATCH, places_by_host, renew, token_of
from allocator.operations.steps import ask
from allocator.protocol.signatures.end import EndCall, Ended, EndedLease, NotYours

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Literal

    from allocator.model.leases import Lease
    from allocator.operations.context import Context
    from allocator.operations.steps import Operation


def release(context: Context, leases: Sequence[Lease]) -> Operation[list[bool]]:
    """End leases; their ports become claimable after the cooldown, for their own workers at once.

    Returns:
        For each lease, in their order, whether this call ended it (False: it had ended already).

    Raises:
        HeldError: When someone else holds one of the ports; the other leases are ended all the same.
        InvalidInputError: When a lease has no token.
        LeaseLostError: In a child that was forked from the holder, to which its leases do not belong.
    """
    return (yield from _end(context, "released", leases))


def decline(context: Context, leases: Sequence[Lease]) -> Operation[list[bool]]:
    """End leases because the kernel refused their ports, which go into quarantine; as `release` else."""
    return (yield from _end(context, "declined", leases))


def fail(context: Context, lease: Lease, why: str) -> Operation[bool]:
    """Record that the worker of a held lease failed, as an event that outlives the lease.

    Returns:
        Whether it was recorded (False: the lease is not this holder's any more).
    """
    token_of(context, lease, "end")
    (outcome,) = yield from renew(context, [lease], failed=error_line(why))
    return outcome.lost is None


def _end(context: Context, how: Literal["released", "declined"], leases: Sequence[Lease]) -> Operation[list[bool]]:
    ended: dict[int, bool] = {}
    refused: HeldError | None = None
    for (pool_name, host), members in places_by_host(leases).items():
        pool = yield from pool_rules(context, pool_name)
        space = space_of(pool, host)
        for start in range(0, len(members), BATCH):
            batch = members[start : start + BATCH]
            asked = tuple(EndedLease(port=leases[i].port, token=token_of(context, leases[i], "end")) for i in batch)
            endings = yield from ask(EndCall(pool=pool_name, space=space, how=how, leases=asked))
            for i, ending in zip(batch, endings, strict=True):
                ended[i] = isinstance(ending, Ended)
                if isinstance(ending, NotYours):
                    refused = _not_yours(leases[i], ending.holder)
    if refused:
        raise refused
    return [ended[i] for i in range(len(leases))]


def _not_yours(lease: Lease, holder: Lease) -> HeldError:
    return HeldError(
        f"port {lease.port} on {lease.host} is held by {holder.worker} under another token; nothing was changed",
        host=lease.host,
        port=lease.port,
        worker=str(lease.worker),
        holder=replace(holder, expires_at=lease.expires_at),
    )
