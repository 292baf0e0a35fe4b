"""Same: what a claim does about leases that its worker has already under the same tokens.

It finds who listens on their ports, and renews them with what the request changes about them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from allocator.model.leases import PROCESS_FIELDS
from allocator.model.values import replace
from allocator.operations import end, refusals
from allocator.operations.renew import renew, renewed
from allocator.operations.steps import DescribeListener, ReadListeners, Warn

if TYPE_CHECKING:
    from allocator.model.errors import AllocatorError
    from allocator.model.leases import Lease
    from allocator.model.pools import PoolSpec
    from allocator.operations.attempt import ClaimRequest
    from allocator.operations.context import Context
    from allocator.operations.steps import Operation


def listened_on(context: Context, request: ClaimRequest, leases: tuple[Lease, ...]) -> Operation[AllocatorError | None]:
    """Name who listens on a port that the worker has already; before its start that port is declined.

    Returns:
        What refused the port, or None when the worker keeps it.
    """
    for lease in leases:
        listening: frozenset[int] = yield ReadListeners(lease.port, lease.port, fresh=True)
        if not listening:
            continue
        who: str | None = yield DescribeListener(lease.port, lease)
        if request.pre_start:
            yield from end.end_apart(context, leases, [lease])
            error = refusals.in_the_way(lease, who)
            yield Warn(str(error))
            return error
        if not request.holder.get("pid"):  # a claim for a process is made by one that runs
            yield Warn(refusals.listened_on(lease, who))
    return None


def as_asked(
    context: Context, pool: PoolSpec, request: ClaimRequest, leases: tuple[Lease, ...]
) -> Operation[tuple[Lease, ...]]:
    """Renew the leases that the workers have already, with what the request changes about them.

    Raises:
        HeldError: When their ports should be contiguous and are not.
        LeaseLostError: When one was lost this instant.
    """
    first = leases[0].port
    if request.contiguous and [lease.port for lease in leases] != list(range(first, first + len(leases))):
        raise refusals.not_contiguous(leases)
    wanted = [_asked_of(lease, request, pool) for lease in leases]
    return renewed((yield from renew(context, wanted, rewrite=tuple(wanted) != leases)))


def _asked_of(lease: Lease, request: ClaimRequest, pool: PoolSpec) -> Lease:
    """Return the lease that a worker has already with what it asks for in a new claim: TTL, labels, its processes.

    A supervisor (whoever is named as `holder_pid`) begins anew: nothing of the processes before is left.
    """
    fields = {name: value for name, value in request.holder.items() if value}
    if "holder_pid" not in fields:
        return replace(lease, ttl_ms=request.ttl_ms or lease.ttl_ms, **fields)
    fields = dict.fromkeys(PROCESS_FIELDS) | fields
    return replace(lease, state=request.state, ttl_ms=pool.check_ttl_ms(request.ttl_ms), **fields)
