"""The row of a lease, written before its claim ends: what is done when another worker's row is in the way."""

from __future__ import annotations

from typing import TYPE_CHECKING

from allocator.model.errors import AllocatorError, HeldError, InvalidInputError
from allocator.model.names import WorkerId
from allocator.operations import end, refusals
from allocator.operations.context import pool_rules
from allocator.operations.find import find
from allocator.operations.renew import renew, renewed
from allocator.operations.steps import Standing, WriteRow

if TYPE_CHECKING:
    from allocator.model.leases import Lease
    from allocator.operations.attempt import Attempt
    from allocator.operations.context import Context
    from allocator.operations.steps import Operation

MAX_LAPSES = 3
"""How often a lease may get another fence while its row is written: a database that slow is not waited for."""


def with_rows(
    context: Context, attempt: Attempt, leases: tuple[Lease, ...]
) -> Operation[tuple[tuple[Lease, ...], AllocatorError | None]]:
    """Return the leases, alive, each with a row of its own fence; or none, with the error of a row in the way.

    Raises:
        DatabaseUnavailableError: When each time the row took longer than the lease lives.
        HeldError: When the row is of a newer lease, or the lease whose place another row has is not of this claim.
        LeaseLostError: When one ran out meanwhile and somebody else has the port.
    """
    for _ in range(MAX_LAPSES):
        in_the_way: HeldError | None = None
        try:
            if refused := (yield from _recorded(context, attempt, leases)):
                return (), refused
        except HeldError as error:
            in_the_way = error  # unless the row is of the same lease, re-asserted meanwhile
        # However soon the row was written: Redis may have lost the lease, and another program re-asserted it.
        alive = renewed((yield from renew(context, leases)))
        if all(now.fence == before.fence for now, before in zip(alive, leases, strict=True)):
            if in_the_way is not None:
                raise in_the_way
            return alive, None
        leases = alive  # re-asserted: their rows are of the fences before
    raise refusals.row_too_slow(leases[0])


def _recorded(context: Context, attempt: Attempt, leases: tuple[Lease, ...]) -> Operation[AllocatorError | None]:
    """Write the rows of leases; where a live row of another worker is in the way, end them and return the error.

    Raises:
        HeldError: When the lease whose place another row has was not granted by this claim.
        DatabaseUnavailableError: When the database does not answer.
    """
    for lease in leases:
        standing: Standing | None = yield WriteRow(lease)
        if standing and (yield from _has_ended(context, lease, standing)):
            standing = yield WriteRow(lease, standing)
        if standing is None:
            continue
        error = refusals.row_in_the_way(lease, standing)
        if not attempt.is_new:
            raise HeldError(str(error), host=lease.host, port=lease.port)
        yield from end.end_apart(context, leases, [lease])
        return error
    return None


def _has_ended(context: Context, lease: Lease, standing: Standing) -> Operation[bool]:
    """Return whether Redis knows that the lease of a row in the way has ended."""
    try:
        worker = WorkerId.parse(standing.worker)
    except InvalidInputError:
        return False
    pool = yield from pool_rules(context, lease.pool)
    (known,) = yield from find(pool, [worker])
    return known.explains_end_of(standing.fence)
