"""Pools: reading their rules, defining them, restoring them where Redis lost them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from allocator.model.errors import HeldError, PoolMissingError
from allocator.model.pools import BUILT_IN, PoolSpec
from allocator.protocol import decode
from allocator.protocol.keys import script_keys
from allocator.protocol.replies import Reply
from allocator.protocol.steps import Operation, ScriptCall

if TYPE_CHECKING:
    from allocator.protocol.context import Context


def read_pool(name: str) -> Operation[PoolSpec | None]:
    """Return the rules of a pool as Redis has them, or None when it has no such pool."""
    reply = decode.words((yield ScriptCall("inspect", script_keys(name), ("pool",))))
    fields = {decode.text(reply[i]): decode.text(reply[i + 1]) for i in range(0, len(reply), 2)}
    return PoolSpec.from_fields(name, fields) if "rules" in fields else None


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
        yield from apply_pool(restored, only_create=True)
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


def apply_pool(pool: PoolSpec, *, only_create: bool = False) -> Operation[Reply]:
    """Define a pool or change its rules; no live lease is touched.

    Returns:
        `created`, `changed` or `unchanged`.

    Raises:
        HeldError: When the scope would change while hosts use the pool.
    """
    args: list[str | int] = ["create" if only_create else "apply"]
    for field, value in pool.as_fields().items():
        args += (field, value)
    reply = decode.words((yield ScriptCall("apply", script_keys(pool.name), tuple(args))))
    code = Reply(decode.text(reply[0]))
    if code is Reply.SCOPE_FIXED:
        raise HeldError(
            f"pool {pool.name} has scope {decode.text(reply[1])} and hosts use it; make a new pool for another scope"
        )
    return code
