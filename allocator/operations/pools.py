"""Defining a pool and changing its rules, with its live leases counted where it had no limits before."""

from __future__ import annotations

from typing import TYPE_CHECKING

from allocator.operations import listing
from allocator.operations.context import define_pool, pool_fields
from allocator.protocol.signatures.pool import IndexCall
from allocator.protocol.wire import ask

if TYPE_CHECKING:
    from allocator.model.pools import PoolSpec
    from allocator.operations.steps import Operation
    from allocator.protocol.replies import Reply

INDEXED_AT_ONCE = 256


def apply_pool(pool: PoolSpec, *, by: str = "-") -> Operation[Reply]:
    """Define a pool or change its rules; no live lease is touched.

    Limits that a pool had none of before hold as soon as its live leases are counted, which is when this returns.

    Args:
        pool: The pool.
        by: Who does it, for the pool's history.

    Returns:
        `created`, `changed` or `unchanged`; `removed`, with `restore`, when an operator removed it.

    Raises:
        HeldError: When the scope would change while hosts use the pool.
    """
    counts = False
    if pool.has_limits:
        before = yield from pool_fields(pool.name)
        counts = "counting" in before or ("rules" in before and not before["rules"].endswith(" more=1"))
        if counts:
            yield from ask(IndexCall(pool=pool.name, mode="start"))
    code = yield from define_pool(pool, "apply", by)
    if counts:
        yield from _enter_leases(pool)
        yield from ask(IndexCall(pool=pool.name, mode="done"))
    return code


def _enter_leases(pool: PoolSpec) -> Operation[None]:
    """Enter the live leases of a pool, which had no limits before, into the indexes that they are counted by."""
    by_namespace: dict[str, list[int]] = {}
    for lease in (yield from listing.leases(pool.name)):
        by_namespace.setdefault(pool.namespace_of(lease.host), []).append(lease.port)
    for namespace, ports in by_namespace.items():
        for start in range(0, len(ports), INDEXED_AT_ONCE):
            batch = tuple(ports[start : start + INDEXED_AT_ONCE])
            yield from ask(IndexCall(pool=pool.name, namespace=namespace, mode="ports", ports=batch))
