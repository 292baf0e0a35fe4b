"""Pools: reading their rules, defining them, restoring them where Redis lost them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from allocator.model.errors import HeldError, PoolMissingError
from allocator.model.pools import BUILT_IN, PoolSpec
from allocator.protocol import decode
from allocator.protocol.context import space_of
from allocator.protocol.keys import script_keys
from allocator.protocol.replies import Reply
from allocator.protocol.steps import Operation, ScriptCall

INDEXED_AT_ONCE = 256

if TYPE_CHECKING:
    from allocator.protocol.context import Context


def read_pool(name: str) -> Operation[PoolSpec | None]:
    """Return the rules of a pool as Redis has them, or None when it has no such pool."""
    fields = yield from _fields(name)
    return PoolSpec.from_fields(name, fields) if "rules" in fields else None


def _fields(name: str) -> Operation[dict[str, str]]:
    reply = decode.words((yield ScriptCall("inspect", script_keys(name), ("pool",))))
    return {decode.text(reply[i]): decode.text(reply[i + 1]) for i in range(0, len(reply), 2)}


def pool_rules(context: Context, name: str, *, fresh: bool = False) -> Operation[PoolSpec]:
    """Return the rules of a pool, from what was read before unless `fresh`.

    A built-in pool that Redis does not have is created, and so is one whose rules were read before Redis lost them.

    Raises:
        PoolMissingError: When nobody knows the pool.
    """
    known = context.rules.get(name)
    if known and not fresh:
        return known
    found = yield from read_pool(name)
    if found is None:
        restored = known or BUILT_IN.get(name)
        if restored is None:
            raise _missing(name)
        yield from apply_pool(restored, only_create=True, restored=known is not None)
        found = yield from read_pool(name)
        if found is None:
            found = restored
    context.rules[name] = found
    return found


def check_pool(name: str) -> Operation[None]:
    """Check that a pool is defined or built in, and make nothing: whoever only looks may have no right to.

    Raises:
        PoolMissingError: When it is neither.
    """
    if name not in BUILT_IN and (yield from read_pool(name)) is None:
        raise _missing(name)


def _missing(name: str) -> PoolMissingError:
    return PoolMissingError(
        f"pool {name} is not defined in this Redis; define it with 'allocator pool apply FILE' "
        "or see 'allocator pool ls'"
    )


def _enter_leases(pool: PoolSpec) -> Operation[None]:
    """Enter the live leases of a pool, which had no limits before, into the indexes that they are counted by."""
    from allocator.protocol import listing

    by_space: dict[str, list[int]] = {}
    for lease in (yield from listing.leases(pool.name)):
        by_space.setdefault(space_of(pool, lease.host), []).append(lease.port)
    for space, ports in by_space.items():
        for start in range(0, len(ports), INDEXED_AT_ONCE):
            batch = ports[start : start + INDEXED_AT_ONCE]
            yield ScriptCall("index", script_keys(pool.name, space), ("ports", *batch))


def apply_pool(pool: PoolSpec, *, only_create: bool = False, restored: bool = False, by: str = "-") -> Operation[Reply]:
    """Define a pool or change its rules; no live lease is touched.

    Limits that a pool had none of before hold as soon as its live leases are counted, which is when this returns.

    Args:
        pool: The pool.
        only_create: Whether a pool that is there already stays as it is.
        restored: Whether it was there before and Redis lost it.
        by: Who does it, for the pool's history.

    Returns:
        `created`, `changed` or `unchanged`.

    Raises:
        HeldError: When the scope would change while hosts use the pool.
    """
    counts = False
    if pool.has_limits and not only_create and not restored:
        before = yield from _fields(pool.name)
        counts = "counting" in before or ("rules" in before and not before["rules"].endswith(" more=1"))
        if counts:
            yield ScriptCall("index", script_keys(pool.name), ("start",))
    args: list[str | int] = ["restore" if restored else "create" if only_create else "apply", by]
    for field, value in pool.as_fields().items():
        args += (field, value)
    reply = decode.words((yield ScriptCall("apply", script_keys(pool.name), tuple(args))))
    code = Reply(decode.text(reply[0]))
    if code is Reply.SCOPE_FIXED:
        raise HeldError(
            f"pool {pool.name} has scope {decode.text(reply[1])} and hosts use it; make a new pool for another scope"
        )
    if counts:
        yield from _enter_leases(pool)
        yield ScriptCall("index", script_keys(pool.name), ("done",))
    return code
