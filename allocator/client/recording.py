"""Write-through, as far as a claim knows of it: a recorder writes the row, and may find another row in its place.

What a recorder is made of is not this floor's business; `allocator.DatabaseRecorder` is one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from allocator.model.errors import ConfigurationError, InvalidInputError, PortRefusedError
from allocator.model.names import WorkerId
from allocator.operations import find
from allocator.operations.pools import pool_rules

if TYPE_CHECKING:
    from allocator.model.leases import Lease
    from allocator.operations.claim import ClaimRequest
    from allocator.operations.context import Context
    from allocator.operations.steps import Operation


@dataclass(frozen=True, slots=True)
class Standing:
    """A live row that has the place of a lease.

    Attributes:
        worker: Whose row it is, as `org/plugin#instance`.
        fence: Its fence, or None for a row that was written by hand.
    """

    worker: str
    fence: int | None


class LeaseRecorder(Protocol):
    """Writes the row of a lease; called from any thread."""

    def record(self, lease: Lease, *, over: Standing | None = None) -> Standing | None:
        """Write the row of a lease, or return the live row of another worker that has its place.

        Args:
            lease: The lease, as it was just granted.
            over: A row in the way that was returned before, and whose lease is known to have ended.
        """
        ...


def needed(recorder: LeaseRecorder | None) -> LeaseRecorder:
    """Return the recorder.

    Raises:
        ConfigurationError: When there is none.
    """
    if recorder is None:
        raise ConfigurationError(
            "record=True needs a database to write to; give the allocator recorder=DatabaseRecorder.open(URL)"
        )
    return recorder


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
