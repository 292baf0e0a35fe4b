"""The signatures of what is done with a pool: read, `apply`, `index`, `recover`, `reap` and `remove` it."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from allocator.model.values import Value
from allocator.protocol import wire
from allocator.protocol.replies import NoPool, Reply
from allocator.protocol.wire import Arguments, Call, HashCall


class InspectPoolCall(HashCall, kw_only=True):
    """The call for a pool's hash; it is empty when there is no such pool."""

    script: ClassVar[str] = "inspect"
    first: ClassVar[Arguments] = ("pool",)


class PoolField(Value, kw_only=True):
    """A field of a pool's hash."""

    name: str
    value: str


class ApplyCall(Call["Applied | ScopeFixed"], kw_only=True):
    """What defines a pool or changes its rules.

    Attributes:
        mode: `create` and `restore` leave a pool that is there as it is; `restore` is for one that Redis lost.
        by: Who does it.
        fields: All rules.
    """

    script: ClassVar[str] = "apply"

    mode: Literal["apply", "create", "restore"]
    by: str = "-"
    fields: tuple[PoolField, ...]

    def decode(self, raw: Any) -> Applied | ScopeFixed:  # noqa: ANN401  # as `Call.decode`
        """Return what the script answered."""
        reply = wire.reply_list(raw)
        code = Reply(wire.text(reply[0]))
        if code is Reply.SCOPE_FIXED:
            return ScopeFixed(scope=wire.text(reply[1]))
        return Applied(code=code)


class Applied(Value, kw_only=True):
    """The pool has these rules.

    Attributes:
        code: `created`, `changed` or `unchanged`; `removed` when an operator removed what is to be restored.
    """

    code: Reply


class ScopeFixed(Value, kw_only=True):
    """The scope cannot change: hosts use the pool.

    Attributes:
        scope: The one that it has.
    """

    scope: str


class IndexCall(Call[int], kw_only=True):
    """What enters live leases into the indexes that limits are counted by.

    Attributes:
        mode: `start`, `ports`, `done`.
        ports: With `ports`: the ports whose leases are entered, at most 256.
    """

    script: ClassVar[str] = "index"

    mode: Literal["start", "ports", "done"]
    ports: tuple[int, ...] = ()

    def decode(self, raw: Any) -> int:  # noqa: ANN401  # as `Call.decode`
        """Return how many leases were entered."""
        return int(wire.number(wire.reply_list(raw)[1]))


class RecoverCall(Call["float | NoPool"], kw_only=True):
    """What begins the recovery of a fleet-wide pool, or finds that none is needed."""

    script: ClassVar[str] = "recover"

    def decode(self, raw: Any) -> float | NoPool:  # noqa: ANN401  # as `Call.decode`
        """Return how many milliseconds are left of it."""
        reply = wire.reply_list(raw)
        return NoPool() if wire.text(reply[0]) == Reply.NO_POOL else wire.number(reply[1])


class ReapCall(Call["Visit"], kw_only=True):
    """What makes ends known that nobody has met.

    Attributes:
        most: How many leases to close at most, 64 or fewer.
    """

    script: ClassVar[str] = "reap"

    most: int

    def decode(self, raw: Any) -> Visit:  # noqa: ANN401  # as `Call.decode`
        """Return what the visit came to."""
        reply = wire.reply_list(raw)
        wait_ms = wire.number(reply[2])
        return Visit(
            closed=int(wire.number(reply[1])),
            next_ms=wait_ms if wait_ms >= 0 else None,
            namespaces=int(wire.number(reply[3])),
        )


class Visit(Value, kw_only=True):
    """What a visit of the reaper came to.

    Attributes:
        closed: How many leases it closed.
        next_ms: How long until the next may be due; None when none is.
        namespaces: How many namespaces of ports the pool has.
    """

    closed: int
    next_ms: float | None
    namespaces: int


class RemoveCall(Call[Reply], kw_only=True):
    """What removes a pool without hosts.

    Attributes:
        by: Who does it.
        reason: Why; `-` when it had no lease.
    """

    script: ClassVar[str] = "remove"

    by: str
    reason: str = "-"

    def decode(self, raw: Any) -> Reply:  # noqa: ANN401  # as `Call.decode`
        """Return `removed`, `unknown` or `busy`."""
        return Reply(wire.text(wire.reply_list(raw)[0]))
