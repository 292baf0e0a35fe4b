"""Pools: reading their rules, making those that Redis has not: the built-in ones, and those that it lost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from allocator.model.errors import HeldError, PoolMissingError
from allocator.model.pools import BUILT_IN, PoolSpec
from allocator.operations.steps import ask
from allocator.protocol.signatures.inspect import InspectPoolCall
from allocator.protocol.signatures.pool import ApplyCall, PoolField, ScopeFixed

if TYPE_CHECKING:
    from allocator.operations.context import Context
    from allocator.operations.steps import Operation
    from allocator.protocol.replies import Reply


def read_pool(name: str) -> Operation[PoolSpec | None]:
    """Return the rules of a pool as Redis has them, or None when it has no such pool."""
    fields = yield from pool_fields(name)
    return PoolSpec.from_fields(name, fields) if "rules" in fields else None


def pool_fields(name: str) -> Operation[dict[str, str]]:
    """Return a pool's hash as Redis has it; empty when it has no such pool."""
    return (yield from ask(InspectPoolCall(pool=name)))


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
        yield from define_pool(restored, "restore" if known else "create")
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


def define_pool(pool: PoolSpec, how: Literal["apply", "create", "restore"], by: str = "-") -> Operation[Reply]:
    """Write the rules of a pool; no live lease is touched, and none is counted.

    Args:
        pool: The pool.
        how: `create` and `restore` leave a pool that is there as it is; `restore` is for one that Redis had and lost.
        by: Who does it, for the pool's history.

    Returns:
        `created`, `changed` or `unchanged`.

    Raises:
        HeldError: When the scope would change while hosts use the pool.
    """
    fields = tuple(PoolField(name=name, value=value) for name, value in pool.as_fields().items())
    done = yield from ask(ApplyCall(pool=pool.name, mode=how, by=by, fields=fields))
    if isinstance(done, ScopeFixed):
        raise HeldError(f"pool {pool.name} has scope {done.scope} and hosts use it; make a new pool for another scope")
    return done.code
