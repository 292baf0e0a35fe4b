"""Hosts of a pool as a whole: registering one, draining it, forgetting it, choosing one for a worker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from allocator.model.errors import ExhaustedError, HeldError, HostConflictError, InvalidInputError
from allocator.model.states import LeaseState
from allocator.model.values import Value, replace
from allocator.operations import listing
from allocator.operations.context import missing, pool_rules, read_pool
from allocator.operations.end import force
from allocator.operations.renew import BATCH
from allocator.protocol.replies import Reply
from allocator.protocol.signatures.host import DrainCall, ForgetCall, PlaceCall, RegisterCall
from allocator.protocol.signatures.pool import RemoveCall
from allocator.protocol.wire import ask

if TYPE_CHECKING:
    from allocator.model.names import WorkerId
    from allocator.model.pools import PoolSpec
    from allocator.operations.context import Context
    from allocator.operations.end import Forced
    from allocator.operations.steps import Operation

Spread = Literal["org", "plugin"]

PLACE_PAGE = 64
MAX_PASSES = 1_000
"""Bounds the passes of a drain, a forget and a removal: each one that is not the last has changed something."""


class Placement(Value):
    """A host that a worker may be placed on.

    Attributes:
        host: Its name.
        free: How many ports of the pool it can still lease.
        matching: How many workers it has of the kind that is to be spread.
    """

    host: str
    free: int
    matching: int


def register(context: Context, pool_name: str) -> Operation[Reply]:
    """Make this host and its address known in a pool, before or after its first claim.

    Returns:
        `created`, `changed` or `unchanged`.

    Raises:
        HostConflictError: When another machine has live leases under this host's name.
        PoolMissingError: When nobody knows the pool.
    """
    pool = yield from pool_rules(context, pool_name)
    for fresh in (False, True):
        if fresh:
            pool = yield from pool_rules(context, pool_name, fresh=True)
        namespace = pool.namespace_of(context.host)
        code = yield from ask(
            RegisterCall(
                pool=pool.name,
                namespace=namespace,
                host=context.host,
                identity=context.full_identity,
                alive_ms=context.alive_ms,
            )
        )
        if code is not Reply.NO_POOL:
            break
    if code is Reply.HOST_CONFLICT:
        raise HostConflictError(
            f"another machine or container has live leases as host {context.host}; "
            "give this one a name of its own with --host or ALLOCATOR_HOST",
            host=context.host,
        )
    return code


def drain(pool: str, host: str) -> Operation[int]:
    """Make a host give out no new ports, and mark its leases as draining.

    Resolve skips them from now on; their supervisors see it at their next renewal and stop their workers.

    Returns:
        How many leases became draining by this call.

    Raises:
        InvalidInputError: When no worker has ever claimed on this host in the pool.
    """
    namespace = yield from _namespace(pool, host)
    total = 0
    for number in range(MAX_PASSES):
        # Read before anything is written; read again afterwards for what was claimed in between.
        found = yield from listing.leases(pool, host)
        leases = [lease for lease in found if lease.state is not LeaseState.DRAINING]
        if number and not leases:
            break
        for start in range(0, max(1, len(leases)), BATCH):
            ports = tuple(lease.port for lease in leases[start : start + BATCH])
            changed = yield from ask(DrainCall(pool=pool, namespace=namespace, host=host, ports=ports))
            if changed is None:
                raise _unknown(pool, host)
            total += changed
    return total


def forget(pool: str, host: str, *, forced: Forced | None = None) -> Operation[int]:
    """Remove a host, and all that is known of it but the leases that an operator ended.

    Args:
        pool: The pool.
        host: The host.
        forced: Who ends its live leases, and why; None when it may have none.

    Returns:
        How many live leases were ended.

    Raises:
        HeldError: When it has live leases.
        InvalidInputError: When the pool knows no such host.
    """
    namespace, ended = (yield from _namespace(pool, host)), 0
    call = ForgetCall(pool=pool, namespace=namespace, host=host)
    if forced:
        call = replace(call, by=forced.by, reason=forced.reason)
    for _ in range(MAX_PASSES):
        code = yield from ask(call)
        if code is Reply.UNKNOWN:
            raise _unknown(pool, host)
        if code is Reply.BUSY and forced:
            ended += sum((yield from force((yield from listing.leases(pool, host)), forced)))
            continue
        if code is Reply.BUSY:
            raise HeldError(
                f"host {host} has live leases in pool {pool}; see them with 'allocator ls --host {host}', "
                f"end them with 'allocator host drain {host}', or with --force where the host is gone for good",
                host=host,
            )
        if code is Reply.FORGOTTEN:
            return ended
        yield from listing.reap(pool)
    raise HeldError(f"leases of host {host} end as fast as they can be closed; try again", host=host)


def remove_pool(pool: str, *, by: str, forced: Forced | None = None) -> Operation[int]:
    """Remove a pool: its rules, and all that is known of its hosts; its events and history go after a week.

    Args:
        pool: The pool.
        by: Who does it.
        forced: Who ends its live leases, and why; None when it may have none.

    Returns:
        How many live leases were ended.

    Raises:
        HeldError: When it has live leases.
        PoolMissingError: When Redis has no such pool.
    """
    ended = 0
    for _ in range(MAX_PASSES):
        for one in (yield from listing.hosts(pool)):
            if one.leases and not forced:
                raise HeldError(
                    f"pool {pool} has live leases on host {one.name}; see them with 'allocator ls --pool {pool}', "
                    "or end them with --force --reason TEXT",
                    host=one.name,
                )
            ended += yield from forget(pool, one.name, forced=forced)
        code = yield from ask(RemoveCall(pool=pool, by=by, reason=forced.reason if forced else "-"))
        if code is Reply.UNKNOWN:
            raise missing(pool)
        if code is Reply.REMOVED:
            return ended
    raise HeldError(f"hosts of pool {pool} claim as fast as they can be forgotten; stop their workers first")


def place(
    pool: str, worker: WorkerId, *, spread: Spread | None = None, without: frozenset[str] = frozenset()
) -> Operation[Placement]:
    """Return the host that a worker is best placed on: of those that give out ports, the one with most free ones.

    Args:
        pool: The pool.
        worker: Who is to be placed.
        spread: Whether hosts with fewest workers of the same `org` or `plugin` come first.
        without: Hosts that are out of the question.

    Raises:
        ExhaustedError: When no host is known that has a free port.
        InvalidInputError: When the kind to spread is neither.
    """
    if spread not in {None, "org", "plugin"}:
        raise InvalidInputError(f"{spread!r} cannot be spread; choose org or plugin")
    rules = yield from read_pool(pool)
    found = [] if rules is None else (yield from _placements(rules, worker, spread))
    usable = [one for one in found if one.free > 0 and one.host not in without]
    if not usable:
        known = len(found)
        raise ExhaustedError(
            f"none of the {known} hosts of pool {pool} that give out ports has a free one; see 'allocator host ls'"
            if known
            else f"no host of pool {pool} gives out ports; make one known with 'allocator host register' on it",
            worker=str(worker),
        )
    return min(usable, key=lambda one: (one.matching, -one.free, one.host))


def _placements(rules: PoolSpec, worker: WorkerId, spread: Spread | None) -> Operation[list[Placement]]:
    org = worker.org if spread == "org" else "-"
    plugin = worker.plugin if spread == "plugin" else "-"
    if rules.scope == "fleet":
        leases = yield from listing.leases(rules.name)
        hosts = yield from listing.hosts(rules.name)
        alike = [lease.host for lease in leases if lease.org == org or lease.plugin == plugin]
        free = rules.size - len(leases)
        # Ports are the fleet's; the host with fewest leases has most room in every other respect.
        return [Placement(one.name, free - one.leases, alike.count(one.name)) for one in hosts if not one.cordoned]
    found: list[Placement] = []
    for offset in range(0, MAX_PASSES * PLACE_PAGE, PLACE_PAGE):
        rooms = yield from ask(PlaceCall(pool=rules.name, offset=offset, count=PLACE_PAGE, org=org, plugin=plugin))
        if rooms is None:
            break
        found += [Placement(room.host, rules.size - room.leased, room.matching) for room in rooms]
    return found


def _namespace(pool: str, host: str) -> Operation[str]:
    rules = yield from read_pool(pool)
    return rules.namespace_of(host) if rules else host


def _unknown(pool: str, host: str) -> InvalidInputError:
    return InvalidInputError(
        f"host {host} is not known in pool {pool}; see 'allocator host ls' for those that are", host=host
    )
