"""Renew: extend leases in batches, say what changed about them, re-assert those that Redis lost.

A heartbeat that has nothing new to say asks `keep`, which is told no more than what proves the leases; only about those
that were not extended is `renew` asked, with all that it takes to decide.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from allocator.model.errors import ConfigurationError, InvalidInputError, LeaseLostError
from allocator.operations.context import space_of
from allocator.operations.pools import pool_rules
from allocator.protocol import decode
from allocator.protocol.calls import ScriptCall
from allocator.protocol.keys import script_keys
from allocator.protocol.replies import Reply

if TYPE_CHECKING:
    from collections.abc import Sequence

    from allocator.model.leases import Lease
    from allocator.model.pools import PoolSpec
    from allocator.operations.context import Context
    from allocator.operations.steps import Operation

BATCH = 256
"""Leases in one call: under 1 ms of server time, so that no claim waits behind a longer script."""
PROOF_LENGTH = 50
"""Characters of a fence and a token with a blank after each; what has other lengths is for `renew` to decide."""


@dataclass(frozen=True, slots=True)
class RenewOutcome:
    """What became of one lease.

    Attributes:
        lease: The lease with its new expiry, deadline and (when it was re-asserted) fence; the old one when lost.
        reasserted: Whether Redis had lost it and has it again.
        lost: Why it is lost, or None.
        draining: Whether its host is to be emptied: its holder stops the worker and releases it.
        reap_due: Whether the pool asks for a visit of its reaper, from whoever renews just now.
    """

    lease: Lease
    reasserted: bool = False
    lost: LeaseLostError | None = None
    draining: bool = False
    reap_due: bool = False

    @property
    def word(self) -> str:
        """What became of it, in a word: `renewed`, `reasserted` or `lost`."""
        return "lost" if self.lost else "reasserted" if self.reasserted else "renewed"


def renew(context: Context, leases: Sequence[Lease], *, rewrite: bool = False) -> Operation[list[RenewOutcome]]:
    """Extend leases by their TTL from now.

    Args:
        context: Who calls.
        leases: The holder's copies, with their tokens, as they should be.
        rewrite: Whether state, TTL and the holder's words in Redis are replaced by those of `leases`.

    Returns:
        One outcome for each lease, in their order.

    Raises:
        InvalidInputError: When a TTL is not allowed in its pool, or a lease has no token.
        PoolMissingError: When a pool is gone and nobody knows its rules.
    """
    outcomes: dict[int, RenewOutcome] = {}
    for (pool_name, host), members in places_by_host(leases).items():
        pool = yield from pool_rules(context, pool_name)
        for start in range(0, len(members), BATCH):
            batch = members[start : start + BATCH]
            results = yield from _renew_batch(context, pool, host, [leases[i] for i in batch], rewrite=rewrite)
            outcomes.update(zip(batch, results, strict=True))
    return [outcomes[i] for i in range(len(leases))]


def places_by_host(leases: Sequence[Lease]) -> dict[tuple[str, str], list[int]]:
    """Return the places of leases in a sequence, by their pool and host: what one call may be about."""
    places: dict[tuple[str, str], list[int]] = {}
    for at, lease in enumerate(leases):
        places.setdefault((lease.pool, lease.host), []).append(at)
    return places


def _renew_batch(
    context: Context, pool: PoolSpec, host: str, leases: list[Lease], *, rewrite: bool
) -> Operation[list[RenewOutcome]]:
    outcomes: dict[int, RenewOutcome] = {}
    if not rewrite:
        provable = [i for i, lease in enumerate(leases) if len(_proof(lease)) == PROOF_LENGTH]
        for ttl_ms in sorted({leases[i].ttl_ms for i in provable}):
            members = [i for i in provable if leases[i].ttl_ms == ttl_ms]
            kept = yield from _kept(context, pool, host, [leases[i] for i in members], ttl_ms)
            outcomes |= {members[at]: outcome for at, outcome in kept.items()}
    left = [i for i in range(len(leases)) if i not in outcomes]
    if left:
        decided = yield from _decided(context, pool, host, [leases[i] for i in left], rewrite=rewrite)
        outcomes.update(zip(left, decided, strict=True))
    return [outcomes[i] for i in range(len(leases))]


def _kept(
    context: Context, pool: PoolSpec, host: str, leases: list[Lease], ttl_ms: int
) -> Operation[dict[int, RenewOutcome]]:
    """Extend leases that are alive; return what became of those, by their place in the list."""
    args: tuple[str | int, ...] = (
        host,
        ttl_ms,
        "".join(_proof(lease) for lease in leases),
        *(lease.port for lease in leases),
    )
    sent_at = context.clock()
    reply = decode.words((yield ScriptCall("keep", script_keys(pool.name, space_of(pool, host)), args)))
    if decode.text(reply[0]) == Reply.NO_POOL:
        return {}
    now_ms, draining, reap_due, *left = (decode.number(word) for word in reply)
    expires_at, deadline = (now_ms + ttl_ms) / 1_000, sent_at + ttl_ms / 1_000
    return {
        i: RenewOutcome(
            replace(lease, expires_at=expires_at, deadline=deadline), draining=draining > 0, reap_due=reap_due > 0
        )
        for i, lease in enumerate(leases)
        if i + 1 not in left
    }


def _decided(
    context: Context, pool: PoolSpec, host: str, leases: list[Lease], *, rewrite: bool
) -> Operation[list[RenewOutcome]]:
    """Extend leases and write what is new about them, or re-assert them, or learn that they are lost."""
    call = _call(context, pool, host, leases, rewrite=rewrite)
    for _ in range(3):
        sent_at = context.clock()
        reply = decode.words((yield call))
        if decode.text(reply[0]) != Reply.NO_POOL:
            break
        pool = yield from pool_rules(context, pool.name, fresh=True)
    else:
        raise ConfigurationError(f"pool {pool.name} vanishes as soon as it is made; is Redis being emptied?")
    now_ms = decode.time_ms(reply[0])
    draining = len(reply) > 2 * len(leases) + 1
    return [
        replace(_outcome(lease, decode.text(reply[2 * i + 1]), reply[2 * i + 2], now_ms, sent_at), draining=draining)
        for i, lease in enumerate(leases)
    ]


def _proof(lease: Lease) -> str:
    return f"{lease.fence} {_token(lease)} "


def _token(lease: Lease) -> str:
    if not lease.token:
        raise InvalidInputError(
            f"the lease of {lease.worker} on {lease.address} has no token; only its holder can renew it"
        )
    return lease.token


def _call(context: Context, pool: PoolSpec, host: str, leases: list[Lease], *, rewrite: bool) -> ScriptCall:
    args: list[str | int] = [host, context.full_identity if host == context.host else "-"]
    mode = "set" if rewrite else "keep"
    for lease in leases:
        args += (
            lease.port,
            _token(lease),
            lease.fence,
            pool.check_ttl_ms(lease.ttl_ms) if rewrite else lease.ttl_ms,
            str(lease.worker),
            mode,
            str(lease.state),
            decode.extra_members(lease.holder_words()),
        )
    return ScriptCall("renew", script_keys(pool.name, space_of(pool, host)), tuple(args))


def _outcome(lease: Lease, code: str, detail: object, now_ms: float, sent_at: float) -> RenewOutcome:
    if code == Reply.LOST:
        return RenewOutcome(lease, lost=_lost(lease, decode.text(detail), now_ms))
    extended = replace(lease, expires_at=(now_ms + lease.ttl_ms) / 1_000, deadline=sent_at + lease.ttl_ms / 1_000)
    if code == Reply.REASSERTED:
        extended = replace(extended, fence=int(decode.number(detail)), granted_at=now_ms / 1_000)
        return RenewOutcome(extended, reasserted=True)
    if known := decode.text(detail):  # the reply to an earlier re-assertion never arrived
        extended = replace(extended, fence=int(decode.number(known)))
    return RenewOutcome(extended)


def _lost(lease: Lease, detail: str, now_ms: float) -> LeaseLostError:
    where = f"the lease of {lease.worker} on {lease.address}"
    if detail == "released":
        return LeaseLostError(
            f"{where} has ended; claim again", host=lease.host, port=lease.port, worker=str(lease.worker)
        )
    if detail == "replaced":
        return LeaseLostError(
            f"{where} expired and a newer lease had the port since; claim again",
            host=lease.host,
            port=lease.port,
            worker=str(lease.worker),
        )
    holder = decode.lease(lease.pool, detail, remaining_ms=0, now_ms=now_ms)
    holder = replace(holder, expires_at=(now_ms + holder.ttl_ms) / 1_000)
    return LeaseLostError(
        f"{where} is lost: {holder.worker} has {holder.address} now; stop this worker and claim again",
        host=lease.host,
        port=lease.port,
        worker=str(lease.worker),
        holder=holder,
    )
