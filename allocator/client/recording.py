"""Write-through: the row of a lease that was just granted is written, or the lease is given back.

What a recorder is made of is not this floor's business; `allocator.DatabaseRecorder` is one.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from allocator.model.errors import AllocatorError, HeldError, InvalidInputError, PortRefusedError
from allocator.model.names import WorkerId
from allocator.operations import end, find
from allocator.operations.pools import pool_rules
from allocator.operations.steps import Standing, WriteRow

if TYPE_CHECKING:
    from allocator.model.leases import Lease
    from allocator.operations.claim import ClaimRequest
    from allocator.operations.context import Context
    from allocator.operations.steps import Operation


def record(context: Context, lease: Lease, *, new: bool) -> Operation[None]:
    """Write the row of a lease.

    Args:
        context: Who claims.
        lease: The lease, as it was just granted.
        new: Whether it was not held before: then it is given back when its row cannot be written.

    Raises:
        PortRefusedError: When a live row of another worker has its place; HeldError when the lease was held before.
        DatabaseUnavailableError: When the database does not answer.
    """
    try:
        standing: Standing | None = yield WriteRow(lease)
        if standing and (yield from has_ended(context, lease, standing)):
            standing = yield WriteRow(lease, standing)
    except AllocatorError:
        if new:
            with contextlib.suppress(AllocatorError):
                yield from end.release(context, [lease])
        raise
    if standing is None:
        return
    if new:
        yield from end.decline(context, [lease])
        raise refusal(lease, standing)
    raise HeldError(str(refusal(lease, standing)), host=lease.host, port=lease.port)


def has_ended(context: Context, lease: Lease, standing: Standing) -> Operation[bool]:
    """Return whether Redis knows that the lease of a row in the way has ended."""
    try:
        worker = WorkerId.parse(standing.worker)
    except InvalidInputError:
        return False
    pool = yield from pool_rules(context, lease.pool)
    (known,) = yield from find.find(pool, [worker])
    return known.explains_end_of(standing.fence)


def may_hold(context: Context, request: ClaimRequest) -> Operation[bool]:
    """Return whether a claim may find its lease held already: then what comes after must not end it."""
    if request.token is None:
        return False
    pool = yield from pool_rules(context, request.pool)
    (known,) = yield from find.find(pool, [request.worker])
    return known.lease is not None


def is_fresh(lease: Lease, now: float) -> bool:
    """Return whether half of a lease's TTL is left: its row may have taken longer than that to be written.

    Args:
        lease: The lease.
        now: The time of the holder's monotonic clock, in seconds.
    """
    return lease.deadline is not None and now < lease.deadline - lease.ttl_ms / 2_000


def refusal(lease: Lease, standing: Standing) -> PortRefusedError:
    """Return the error of a claim whose place another row has; another port may do."""
    fence = "written by hand" if standing.fence is None else f"fence {standing.fence}"
    return PortRefusedError(
        f"port {lease.port} on {lease.host} was leased, but the database has a live row of {standing.worker} there "
        f"({fence}); see 'allocator reconcile --dry-run'",
        host=lease.host,
        port=lease.port,
        worker=str(lease.worker),
        retry_after=0.0,
    )
