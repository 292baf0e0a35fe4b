"""Release and decline: end leases, one batch per call."""

from __future__ import annotations

from typing import TYPE_CHECKING

from allocator.model.errors import HeldError, InvalidInputError
from allocator.model.leases import error_line
from allocator.model.values import Value, replace
from allocator.operations.context import pool_rules, read_pool
from allocator.operations.renew import BATCH, indices_by_host, renew, token_of
from allocator.protocol.signatures.end import EndCall, Ended, EndedLease, Ending, How, NotYours
from allocator.protocol.wire import ask

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from allocator.model.leases import Lease
    from allocator.model.pools import PoolSpec
    from allocator.operations.context import Context
    from allocator.operations.steps import Operation


class Forced(Value):
    """Who ends leases that others hold, and why; both stand in the events.

    Attributes:
        by: The operator, as a name.
        reason: Why, in one line.

    Raises:
        InvalidInputError: When no reason is given.
    """

    by: str
    reason: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "by", error_line(self.by) or "-")
        object.__setattr__(self, "reason", error_line(self.reason))
        if not self.reason:
            raise InvalidInputError("a lease of somebody else is ended for a reason; give it with --reason TEXT")


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


def force(leases: Sequence[Lease], forced: Forced) -> Operation[list[bool]]:
    """End leases that somebody else holds, because an operator asks for it.

    A holder that lives after all learns it at its next renewal, and stops.

    Args:
        leases: As they were seen, from any listing; one that was granted since is left alone.
        forced: Who does it, and why.

    Returns:
        For each lease, in their order, whether this call ended it (False: it had ended already).

    Raises:
        HeldError: When a newer lease has one of the ports; the others are ended all the same.
        InvalidInputError: When the pool is not known.
    """
    wanted = [EndedLease(port=lease.port, token=str(lease.fence)) for lease in leases]
    return (yield from _ended(read_rules, leases, wanted, "forced", by=forced.by, reason=forced.reason))


def read_rules(name: str) -> Operation[PoolSpec]:
    """Return the rules of a pool, which has to be defined.

    Raises:
        InvalidInputError: When it is not.
    """
    rules = yield from read_pool(name)
    if rules is None:
        raise InvalidInputError(f"pool {name} is not defined in this Redis; see 'allocator pool ls'")
    return rules


def fail(context: Context, lease: Lease, why: str) -> Operation[bool]:
    """Record that the worker of a held lease failed, as an event that outlives the lease.

    Returns:
        Whether it was recorded (False: the lease is not this holder's any more).
    """
    (outcome,) = yield from renew(context, [lease], failed=error_line(why))
    return outcome.lost is None


def _end(context: Context, how: How, leases: Sequence[Lease]) -> Operation[list[bool]]:
    wanted = [EndedLease(port=lease.port, token=token_of(context, lease, "end")) for lease in leases]
    return (yield from _ended(lambda name: pool_rules(context, name), leases, wanted, how))


def _ended(
    rules: Callable[[str], Operation[PoolSpec]],
    leases: Sequence[Lease],
    wanted: Sequence[EndedLease],
    how: How,
    by: str = "",
    reason: str = "",
) -> Operation[list[bool]]:
    endings: dict[int, Ending] = {}
    for (pool_name, host), members in indices_by_host(leases).items():
        namespace = (yield from rules(pool_name)).namespace_of(host)
        for start in range(0, len(members), BATCH):
            batch = members[start : start + BATCH]
            asked = tuple([wanted[at] for at in batch])
            found = yield from ask(
                EndCall(pool=pool_name, namespace=namespace, how=how, leases=asked, by=by, reason=reason)
            )
            endings.update(zip(batch, found, strict=True))
    for at, ending in endings.items():
        if isinstance(ending, NotYours):
            raise _not_yours(leases[at], ending.holder)
    return [isinstance(endings[at], Ended) for at in range(len(leases))]


def _not_yours(lease: Lease, holder: Lease) -> HeldError:
    return HeldError(
        f"port {lease.port} on {lease.host} is held by {holder.worker} under another token; nothing was changed",
        host=lease.host,
        port=lease.port,
        worker=str(lease.worker),
        holder=replace(holder, expires_at=lease.expires_at),
    )


def end_apart(context: Context, leases: tuple[Lease, ...], declined: list[Lease]) -> Operation[None]:
    """Decline those leases whose ports were refused, and release the others that were granted with them."""
    yield from decline(context, declined)
    if others := [lease for lease in leases if lease not in declined]:
        yield from release(context, others)
