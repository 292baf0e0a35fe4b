"""Who calls: what every operation knows of its own host, and the rules of the pools that it goes by.

A pool that Redis has not is made here: a built-in one, and one that Redis lost after its rules were read.
"""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING, Literal

from allocator.model.errors import HeldError, PoolMissingError
from allocator.model.pools import BUILT_IN, PoolSpec
from allocator.model.values import Value, field
from allocator.protocol.replies import Reply
from allocator.protocol.signatures.pool import ApplyCall, InspectPoolCall, PoolField, ScopeFixed
from allocator.protocol.wire import UNKNOWN_AGE_MS, ask

if TYPE_CHECKING:
    from collections.abc import Callable

    from allocator.operations.steps import Operation


class Context(Value, frozen=False):
    """The caller of operations: one host, one clock.

    Attributes:
        host: The name of this host.
        identity: What proves that it is the same one as before: machine, boot and network namespace, one field each.
        clock: The monotonic clock, in seconds.
        new_token: Makes 128 random bits as 32 hexadecimal digits.
        address: The address under which others reach this host; after a `!` when somebody chose it, so that one that
            was only found does not replace it; empty when it is not known.
        elsewhere: Whether the host is another one than this process runs on: of its kernel nothing is seen.
        began: When this host began to run, by `clock`: its machine started, or its container; None when nobody knows.
        rng: The source of jitter.
        process: Returns the pid of the process that calls.
        rules: The rules of the pools that were read, by name; operations keep it up to date.
        own_turns: The count of a caller that may only read, by service (`org/plugin`).
        own_turns_until: Until when it does not ask for a turn of all callers, by `clock`.
    """

    host: str
    identity: str
    clock: Callable[[], float]
    new_token: Callable[[], str]
    address: str = ""
    elsewhere: bool = False
    began: float | None = None
    rng: random.Random = field(default_factory=random.Random)
    process: Callable[[], int] = os.getpid
    rules: dict[str, PoolSpec] = field(default_factory=dict)
    own_turns: dict[str, int] = field(default_factory=dict)
    own_turns_until: float = 0.0

    @property
    def full_identity(self) -> str:
        """What the pool knows this host by: its identity and, where it is known, its address."""
        return f"{self.identity} {self.address}" if self.address else self.identity

    @property
    def alive_ms(self) -> int:
        """For how many milliseconds this host has run."""
        return UNKNOWN_AGE_MS if self.began is None else max(0, int((self.clock() - self.began) * 1_000))


def read_pool(name: str) -> Operation[PoolSpec | None]:
    """Return the rules of a pool as Redis has them, or None when it has no such pool."""
    fields = yield from pool_fields(name)
    return PoolSpec.from_fields(name, fields) if "rules" in fields else None


def pool_fields(name: str) -> Operation[dict[str, str]]:
    """Return a pool's hash as Redis has it; empty when it has no such pool."""
    return (yield from ask(InspectPoolCall(pool=name)))


def pool_rules(context: Context, name: str, *, fresh: bool = False) -> Operation[PoolSpec]:
    """Return the rules of a pool, from what was read before unless `fresh`.

    A built-in pool that Redis does not have is created, and so is one whose rules were read before Redis lost them;
    not so one that an operator removed.

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
            raise missing(name)
        done = yield from define_pool(restored, "restore" if known else "create")
        if done is Reply.REMOVED:
            if name not in BUILT_IN:
                raise missing(name)
            restored = BUILT_IN[name]
            yield from define_pool(restored, "create")
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
        raise missing(name)


def missing(name: str) -> PoolMissingError:
    """Return the error for a pool that nobody knows."""
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
        `created`, `changed` or `unchanged`; `removed`, with `restore`, when an operator removed it.

    Raises:
        HeldError: When the scope would change while hosts use the pool.
    """
    fields = tuple(PoolField(name=name, value=value) for name, value in pool.as_fields().items())
    done = yield from ask(ApplyCall(pool=pool.name, mode=how, by=by, fields=fields))
    if isinstance(done, ScopeFixed):
        raise HeldError(f"pool {pool.name} has scope {done.scope} and hosts use it; make a new pool for another scope")
    return done.code
