"""Waiting for a port in a queue: first come, first served for each namespace of ports, the higher priority first.

A waiter shows Redis once a second that it is there, and is woken by a push to a key of its own. It asks for its
position only when it is near the front, or now and then: a thousand waiters cost Redis next to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from allocator.model.errors import AllocatorError
from allocator.model.values import replace
from allocator.operations.attempt import Waiting, wanted_condition
from allocator.operations.context import pool_rules
from allocator.operations.steps import AwaitTurn, Operation
from allocator.protocol.keys import waiter_keys
from allocator.protocol.replies import NoPool
from allocator.protocol.signatures.queue import JoinCall, LeaveCall, Position
from allocator.protocol.wire import ask

if TYPE_CHECKING:
    import random

    from allocator.model.errors import AllocatorError
    from allocator.operations.attempt import ClaimRequest
    from allocator.operations.context import Context

ALIVE_MS = 1_800
"""A waiter that is silent for this long is skipped: less than the 2 s for which a dead one may hold up the queue."""
REFRESH_S = 0.95
LOOK_SLACK_S = 0.01
FRONT = 4
"""This many waiters at the head ask for their position whenever they wake; the others less often, by their distance."""

BLOCK = -1
"""The port of a waiter that waits for a block of contiguous ones."""

SOON = Position(position="", ahead=1, look_ms=None, held=0)
"""The position of a waiter whose pool vanished: it asks again."""


def wanted_port(request: ClaimRequest) -> int:
    """Return the port that is waited for; 0 for any, -1 for a block of contiguous ones, -n for any n."""
    if request.contiguous:
        return BLOCK
    return request.port or (-len(request.names) if len(request.names) > 1 else 0)


def join(context: Context, waiting: Waiting) -> Operation[Waiting]:
    """Join the queue, or stay in it."""
    request = waiting.request
    pool = yield from pool_rules(context, request.pool)
    found = yield from ask(
        JoinCall(
            pool=pool.name,
            namespace=pool.namespace_of(context.host),
            ticket=waiting.ticket,
            host=context.host,
            worker=str(request.worker),
            priority=request.priority,
            position=waiting.position.position if waiting.position else "",
            port=wanted_port(request),
            condition=waiting.condition,
        )
    )
    if isinstance(found, NoPool):
        yield from pool_rules(context, request.pool, fresh=True)
        return replace(waiting, position=waiting.position or SOON)
    return replace(waiting, position=found)


def leave(context: Context, request: ClaimRequest, ticket: str) -> Operation[None]:
    """Leave the queue; the next waiter is woken."""
    pool = yield from pool_rules(context, request.pool)
    namespace = pool.namespace_of(context.host)
    worker = str(request.worker)
    yield from ask(LeaveCall(pool=pool.name, namespace=namespace, ticket=ticket, host=context.host, worker=worker))


def wait_for_turn(context: Context, waiting: Waiting, error: AllocatorError, *, deadline: float) -> Operation[Waiting]:
    """Wait until a waiter may claim again; join the queue first where that has not been done.

    Args:
        context: Who calls.
        waiting: The waiter.
        error: What its last claim failed with.
        deadline: Until when it waits, in seconds of its monotonic clock.

    Raises:
        AllocatorError: That error, when there is no time left.
    """
    if waiting.position is None:
        return (yield from join(context, waiting))
    condition = waiting.condition_after(error)
    if condition != waiting.condition:  # show that at once: nobody else shall wait for it
        waiting = yield from join(context, replace(waiting, condition=condition))
        if waiting.behind == 0:  # what held it back may have ended before it was shown
            return waiting
    retry_after = error.retry_after
    while True:
        left_s = deadline - context.clock()
        if left_s <= 0:
            raise error
        waiter, turn = waiter_keys(waiting.request.pool, waiting.ticket)
        shown = f"{wanted_port(waiting.request)} {waiting.condition} {waiting.request.worker}"
        pause_s = min(left_s, _pause_s(waiting, retry_after, context.rng))
        woken: bool = yield AwaitTurn(waiter, shown, turn, ALIVE_MS, pause_s)
        waiting, retry_after = replace(waiting, woken=woken), None
        if woken and waiting.position and waiting.position.ahead:  # there is room: what is left is the queue here
            waiting = replace(waiting, condition=wanted_condition(waiting.request))
        if woken or _asks_now(waiting, context.rng):
            waiting = yield from join(context, waiting)
        if waiting.may_claim:
            return waiting


def _pause_s(waiting: Waiting, retry_after: float | None, rng: random.Random) -> float:
    pause_s = REFRESH_S * rng.uniform(0.9, 1.0)
    look_ms = waiting.position.look_ms if waiting.position else None
    if look_ms is not None:
        pause_s = min(pause_s, look_ms / 1_000 + LOOK_SLACK_S)
    if retry_after is not None:
        pause_s = min(pause_s, retry_after + rng.uniform(0.0, LOOK_SLACK_S))
    return pause_s


def _asks_now(waiting: Waiting, rng: random.Random) -> bool:
    """Return whether a waiter that was not woken asks for its position: seldom when it is far behind."""
    return waiting.behind < FRONT or rng.random() < FRONT / waiting.behind
