"""Lead: the leadership of a pool's reconcilers, a lease of its own kind, and the way back of claims from a database."""

from __future__ import annotations

from typing import TYPE_CHECKING

from allocator.model.values import Value
from allocator.protocol.replies import NoPool
from allocator.protocol.signatures.lead import LeadCall, Leads, RememberedLease, ResignCall, RestoreCall
from allocator.protocol.wire import ask

if TYPE_CHECKING:
    from collections.abc import Sequence

    from allocator.model.names import WorkerId
    from allocator.model.pools import PoolSpec
    from allocator.operations.steps import Operation

RESTORE_BATCH = 256


class Leadership(Value):
    """Who leads.

    Attributes:
        fence: The fence of the caller's leadership, or None when another leads.
        holder: Who leads, as text.
        remaining_ms: How long the other may still lead without a sign of life.
    """

    fence: int | None
    holder: str
    remaining_ms: float = 0.0


def take_leadership(pool: str, *, token: str, ttl_ms: int, holder: str, known_fence: int = 0) -> Operation[Leadership]:
    """Become the leader of a pool's reconcilers, or go on being it.

    Args:
        pool: The pool.
        token: The caller's proof.
        ttl_ms: How long the leadership lives without being taken again.
        holder: Who the caller is, as text without quotes.
        known_fence: The highest fence of a leader that the caller has seen; its own will be higher.
    """
    found = yield from ask(LeadCall(pool=pool, token=token, ttl_ms=ttl_ms, holder=holder, known_fence=known_fence))
    if isinstance(found, Leads):
        return Leadership(found.fence, holder)
    return Leadership(None, found.holder, found.remaining_ms)


def give_up_leadership(pool: str, token: str) -> Operation[bool]:
    """Stop leading, so that another can at once; return whether the caller did lead."""
    return (yield from ask(ResignCall(pool=pool, token=token)))


class Remembered(Value):
    """A lease that a database remembers."""

    worker: WorkerId
    host: str
    port: int
    fence: int


def restore(pool: PoolSpec, claims: Sequence[Remembered], ttl_ms: int) -> Operation[list[bool]]:
    """Keep the ports of remembered leases for their own workers, for `ttl_ms` from now.

    Returns:
        For each, in their order, whether it was restored (False: Redis knows its port or worker by itself).
    """
    done: dict[int, bool] = {}
    by_namespace: dict[str, list[int]] = {}
    for at, claim in enumerate(claims):
        by_namespace.setdefault(pool.namespace_of(claim.host), []).append(at)
    for namespace, members in by_namespace.items():
        for start in range(0, len(members), RESTORE_BATCH):
            batch = members[start : start + RESTORE_BATCH]
            leases = tuple(
                RememberedLease(host=one.host, port=one.port, worker=str(one.worker), fence=one.fence)
                for one in (claims[at] for at in batch)
            )
            restored = yield from ask(RestoreCall(pool=pool.name, namespace=namespace, ttl_ms=ttl_ms, leases=leases))
            if isinstance(restored, NoPool):
                return [False] * len(claims)
            done.update(zip(batch, restored, strict=True))
    return [done[at] for at in range(len(claims))]
