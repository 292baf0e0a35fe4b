"""Who calls: what every operation knows of its own host, and the pools whose rules it has read."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from allocator.protocol.calls import UNKNOWN_AGE_MS
from allocator.protocol.keys import FLEET_SPACE

if TYPE_CHECKING:
    from collections.abc import Callable

    from allocator.model.pools import PoolSpec


@dataclass(slots=True)
class Context:
    """The caller of operations: one host, one clock.

    Attributes:
        host: The name of this port namespace.
        identity: What proves that it is the same one as before: machine, boot and network namespace, a word each.
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

    def space(self, pool: PoolSpec) -> str:
        """Return where a port number of `pool` is unique for this host."""
        return space_of(pool, self.host)


def space_of(pool: PoolSpec, host: str) -> str:
    """Return the space of a host's ports in a pool: the host itself, or the whole fleet."""
    return FLEET_SPACE if pool.scope == "fleet" else host
