"""The signatures of `resolve`: the address of a service's next ready worker, or of all its workers."""

from __future__ import annotations

from typing import Any, ClassVar

from allocator.model.endpoints import Sighting
from allocator.model.values import Value
from allocator.protocol import wire
from allocator.protocol.replies import Reply
from allocator.protocol.wire import Call


class FoundWorkers(Value, kw_only=True):
    """The next ready worker of a service, or all its workers in whatever state.

    Attributes:
        workers: The lease and the address of each.
        next_offset: From which on to ask for more, or None when that was all.
    """

    workers: tuple[Sighting, ...]
    next_offset: int | None


class NoneReady(Value, kw_only=True):
    """No worker of the service is ready.

    Attributes:
        starting: How many are starting.
        degraded: How many are degraded.
        draining: How many are draining.
    """

    starting: int
    degraded: int
    draining: int


class NoTurn(Value):
    """The turn of a worker could not be written: the caller may only read, or Redis is full."""


def _found(pool: str, raw: object) -> FoundWorkers | NoneReady:
    reply = wire.reply_list(raw)
    if wire.text(reply[0]) == Reply.NONE:
        starting, degraded, draining = (int(wire.number(count)) for count in reply[1:4])
        return NoneReady(starting=starting, degraded=degraded, draining=draining)
    now_ms, offset = wire.number(reply[1]), int(wire.number(reply[2]))
    workers = tuple(
        Sighting.of(
            wire.lease(pool, reply[at], remaining_ms=wire.number(reply[at + 1]), now_ms=now_ms),
            wire.address(reply[at + 2]),
            now_ms,
        )
        for at in range(3, len(reply), 3)
    )
    return FoundWorkers(workers=workers, next_offset=offset if offset >= 0 else None)


class ResolveCall(Call["FoundWorkers | NoneReady | NoTurn"], kw_only=True):
    """The call for the next ready worker, strictly in turn.

    Attributes:
        plugin: The service's plugin.
        org: The service's organisation.
        mode: Which of them.
        prefer: The host whose workers come first, or `-`.
    """

    script: ClassVar[str] = "resolve"

    plugin: str
    org: str
    mode: str = "next"
    prefer: str = "-"

    def decode(self, raw: Any) -> FoundWorkers | NoneReady | NoTurn:  # noqa: ANN401  # as `Call.decode`
        """Return one ready worker, or that there is none, or that no turn can be taken."""
        if wire.text(wire.reply_list(raw)[0]) == Reply.NO_TURN:
            return NoTurn()
        return _found(self.pool, raw)


class ResolveAllCall(Call["FoundWorkers | NoneReady"], kw_only=True):
    """The call for all workers in whatever state, page by page.

    Attributes:
        plugin: The service's plugin.
        org: The service's organisation.
        mode: Which of them.
        offset: The index of the first one.
    """

    script: ClassVar[str] = "resolve"

    plugin: str
    org: str
    mode: str = "all"
    offset: int = 0

    def decode(self, raw: Any) -> FoundWorkers | NoneReady:  # noqa: ANN401  # as `Call.decode`
        """Return a page of workers, or that there is none."""
        return _found(self.pool, raw)
