"""Renew: extend leases in batches, write changed fields, re-assert leases that Redis lost.

A heartbeat that has nothing new to report calls `extend`, which gets only what proves the leases; only about those
that were not extended is `renew` asked, with all that it takes to decide.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from allocator.model.errors import (
    AllocatorError,
    ConfigurationError,
    InvalidInputError,
    LeaseLostError,
    PoolMissingError,
    StoreUnavailableError,
)
from allocator.model.values import Value, replace
from allocator.operations.context import pool_rules
from allocator.protocol.replies import NoPool
from allocator.protocol.signatures.renew import (
    PROOF_LENGTH,
    ExtendCall,
    Lost,
    Outcome,
    Proof,
    Reasserted,
    RenewCall,
    RenewedLease,
)
from allocator.protocol.wire import ask

if TYPE_CHECKING:
    from collections.abc import Sequence

    from allocator.model.leases import Lease
    from allocator.model.pools import PoolSpec
    from allocator.operations.context import Context
    from allocator.operations.steps import Operation

BATCH = 256
"""Leases in one call: under 1 ms of server time, so that no claim waits behind a longer script."""


class RenewOutcome(Value):
    """The outcome of one lease's renewal.

    Attributes:
        lease: The lease with its new expiry, deadline and (when it was re-asserted) fence; the old one when lost.
        reasserted: Whether Redis had lost it and has it again.
        lost: Why it is lost, or None.
        failed: Why nobody knows (`renew_each`), or None.
        draining: Whether its host is to be emptied: its holder stops the worker and releases it.
        reap_due: Whether the pool asks for a visit of its reaper, from whoever renews just now.
    """

    lease: Lease
    reasserted: bool = False
    lost: LeaseLostError | None = None
    failed: AllocatorError | None = None
    draining: bool = False
    reap_due: bool = False

    @property
    def code(self) -> str:
        """The outcome: `renewed`, `reasserted`, `lost` or `unanswered`."""
        if self.failed:
            return "unanswered"
        return "lost" if self.lost else "reasserted" if self.reasserted else "renewed"


def renew(
    context: Context, leases: Sequence[Lease], *, rewrite: bool = False, failed: str = ""
) -> Operation[list[RenewOutcome]]:
    """Renew leases: each ends one TTL from now.

    Args:
        context: Who calls.
        leases: The holder's copies, with their tokens, as they should be.
        rewrite: Whether state, TTL and the holder's fields in Redis are replaced by those of `leases`.
        failed: Why the worker failed, in one line, to be written down in the events; empty when it did not.

    Returns:
        One outcome for each lease, in their order.

    Raises:
        InvalidInputError: When a TTL is not allowed in its pool, or a lease has no token.
        PoolMissingError: When a pool is gone and nobody knows its rules.
    """
    outcomes: dict[int, RenewOutcome] = {}
    for (pool_name, host), members in indices_by_host(leases).items():
        pool = yield from pool_rules(context, pool_name)
        for start in range(0, len(members), BATCH):
            batch = members[start : start + BATCH]
            results = yield from _renew_batch(context, pool, host, [leases[i] for i in batch], rewrite, failed)
            outcomes.update(zip(batch, results, strict=True))
    return [outcomes[i] for i in range(len(leases))]


def renew_each(context: Context, leases: Sequence[Lease], *, rewrite: bool = False) -> Operation[list[RenewOutcome]]:
    """Extend leases of many holders; a failure of one lease or pool does not affect the others.

    Arguments and results are those of `renew`; the outcome of a lease that could not be renewed has the error.

    Raises:
        StoreUnavailableError: When Redis answered for none of them.
    """
    outcomes: list[RenewOutcome] = [RenewOutcome(lease) for lease in leases]
    pools: dict[str, list[int]] = {}
    for at, lease in enumerate(leases):
        pools.setdefault(lease.pool, []).append(at)
    for members in pools.values():
        found = yield from _renew_apart(context, [leases[i] for i in members], rewrite=rewrite)
        for at, outcome in zip(members, found, strict=True):
            outcomes[at] = outcome
    away = [outcome.failed for outcome in outcomes if isinstance(outcome.failed, StoreUnavailableError)]
    if away and len(away) == len(outcomes):
        raise away[0]
    return outcomes


def _renew_apart(context: Context, leases: list[Lease], *, rewrite: bool) -> Operation[list[RenewOutcome]]:
    """Renew leases of one pool together; when that fails, in halves, until the failing lease is found."""
    try:
        return (yield from renew(context, leases, rewrite=rewrite))
    except StoreUnavailableError as error:
        return [RenewOutcome(lease, failed=error) for lease in leases]
    except AllocatorError as error:
        if len(leases) == 1 or isinstance(error, PoolMissingError):
            return [RenewOutcome(lease, failed=error) for lease in leases]
    middle = len(leases) // 2
    first = yield from _renew_apart(context, leases[:middle], rewrite=rewrite)
    return first + (yield from _renew_apart(context, leases[middle:], rewrite=rewrite))


def indices_by_host(leases: Sequence[Lease]) -> dict[tuple[str, str], list[int]]:
    """Return the indices of leases by their pool and host; one call of a script is for one pool and host."""
    indices: dict[tuple[str, str], list[int]] = {}
    for at, lease in enumerate(leases):
        indices.setdefault((lease.pool, lease.host), []).append(at)
    return indices


def _renew_batch(
    context: Context, pool: PoolSpec, host: str, leases: list[Lease], rewrite: bool, failed: str
) -> Operation[list[RenewOutcome]]:
    outcomes: dict[int, RenewOutcome] = {}
    if not (rewrite or failed):
        provable = [i for i, lease in enumerate(leases) if len(_proof(context, lease).written) == PROOF_LENGTH]
        for ttl_ms in sorted({leases[i].ttl_ms for i in provable}):
            members = [i for i in provable if leases[i].ttl_ms == ttl_ms]
            extended = yield from _extended(context, pool, host, [leases[i] for i in members], ttl_ms)
            outcomes |= {members[at]: outcome for at, outcome in extended.items()}
    left = [i for i in range(len(leases)) if i not in outcomes]
    if left:
        decided = yield from _decided(context, pool, host, [leases[i] for i in left], rewrite, failed)
        outcomes.update(zip(left, decided, strict=True))
    return [outcomes[i] for i in range(len(leases))]


def _extended(
    context: Context, pool: PoolSpec, host: str, leases: list[Lease], ttl_ms: int
) -> Operation[dict[int, RenewOutcome]]:
    """Extend leases that are alive; return their outcomes, by their index in the list."""
    proofs = tuple(_proof(context, lease) for lease in leases)
    sent_at = context.clock()
    found = yield from ask(
        ExtendCall(pool=pool.name, namespace=pool.namespace_of(host), host=host, ttl_ms=ttl_ms, leases=proofs)
    )
    if isinstance(found, NoPool):
        return {}
    expires_at, deadline = (found.now_ms + ttl_ms) / 1_000, sent_at + ttl_ms / 1_000
    return {
        i: RenewOutcome(
            replace(lease, expires_at=expires_at, deadline=deadline), draining=found.draining, reap_due=found.reap_due
        )
        for i, lease in enumerate(leases)
        if i not in found.left
    }


def _decided(
    context: Context, pool: PoolSpec, host: str, leases: list[Lease], rewrite: bool, failed: str
) -> Operation[list[RenewOutcome]]:
    """Extend leases and write their changed fields, re-assert them, or find that they are lost."""
    call = _call(context, pool, host, leases, rewrite, failed)
    for _ in range(3):
        sent_at = context.clock()
        found = yield from ask(call)
        if not isinstance(found, NoPool):
            break
        try:
            pool = yield from pool_rules(context, pool.name, fresh=True)
        except PoolMissingError:  # what Redis lost is defined again: this one an operator removed
            return [RenewOutcome(lease, lost=_lost(lease, Lost(why="forced"))) for lease in leases]
    else:
        raise ConfigurationError(f"pool {pool.name} vanishes as soon as it is made; is Redis being emptied?")
    return [
        replace(_outcome(lease, outcome, found.now_ms, sent_at), draining=found.draining)
        for lease, outcome in zip(leases, found.outcomes, strict=True)
    ]


def _proof(context: Context, lease: Lease) -> Proof:
    return Proof(port=lease.port, fence=lease.fence, token=token_of(context, lease, "renew"))


def token_of(context: Context, lease: Lease, verb: str) -> str:
    """Return the token of a lease, for its holder.

    Args:
        context: Who calls.
        lease: The lease.
        verb: What is done with it, for the error.

    Raises:
        InvalidInputError: When this copy has no token.
        LeaseLostError: When it is a copy in a forked child: the lease stays with the parent.
    """
    if not lease.token:
        raise InvalidInputError(
            f"the lease of {lease.worker} on {lease.address} has no token; only its holder can {verb} it"
        )
    if lease.process is not None and lease.process != context.process():
        raise of_the_parent(lease)
    return lease.token


def of_the_parent(lease: Lease) -> LeaseLostError:
    """Return the error for a copy of a lease in a process that was forked from its holder."""
    return LeaseLostError(
        f"the lease of {lease.worker} on {lease.address} stays with process {lease.process}, from which this one was "
        "forked; claim one here, after the fork",
        host=lease.host,
        port=lease.port,
        worker=str(lease.worker),
    )


def _call(context: Context, pool: PoolSpec, host: str, leases: list[Lease], rewrite: bool, failed: str) -> RenewCall:
    return RenewCall(
        pool=pool.name,
        namespace=pool.namespace_of(host),
        host=host,
        identity=context.full_identity if host == context.host else "-",
        leases=tuple(
            RenewedLease(
                port=lease.port,
                token=token_of(context, lease, "renew"),
                fence=lease.fence,
                ttl_ms=pool.check_ttl_ms(lease.ttl_ms) if rewrite else lease.ttl_ms,
                worker=str(lease.worker),
                mode="set" if rewrite else "keep",
                state=lease.state,
                extra=lease.holder_fields(),
                failed=failed,
            )
            for lease in leases
        ),
    )


def _outcome(lease: Lease, outcome: Outcome, now_ms: float, sent_at: float) -> RenewOutcome:
    if isinstance(outcome, Lost):
        return RenewOutcome(lease, lost=_lost(lease, outcome))
    extended = replace(lease, expires_at=(now_ms + lease.ttl_ms) / 1_000, deadline=sent_at + lease.ttl_ms / 1_000)
    if isinstance(outcome, Reasserted):
        return RenewOutcome(replace(extended, fence=outcome.fence, granted_at=now_ms / 1_000), reasserted=True)
    if outcome.fence is not None:  # the reply to an earlier re-assertion never arrived
        extended = replace(extended, fence=outcome.fence)
    return RenewOutcome(extended)


def _lost(lease: Lease, lost: Lost) -> LeaseLostError:
    where = f"the lease of {lease.worker} on {lease.address}"
    if lost.holder:
        sentence = (
            f"{where} is lost: {lost.holder.worker} has {lost.holder.address} now; stop this worker and claim again"
        )
    elif lost.why == "forced":
        sentence = f"{where} was ended by an operator; stop this worker"
    elif lost.why == "replaced":
        sentence = f"{where} expired and a newer lease had the port since; claim again"
    else:
        sentence = f"{where} has ended; claim again"
    return LeaseLostError(sentence, host=lease.host, port=lease.port, worker=str(lease.worker), holder=lost.holder)


def renewed(outcomes: list[RenewOutcome]) -> tuple[Lease, ...]:
    """Return the leases that were renewed.

    Raises:
        LeaseLostError: When one of them is lost.
    """
    for outcome in outcomes:
        if outcome.lost:
            raise outcome.lost
    return tuple(outcome.lease for outcome in outcomes)
