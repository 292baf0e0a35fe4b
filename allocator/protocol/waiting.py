"""Waiting for a port in line: first come, first served for each space, the higher priority first.

A waiter tells Redis once a second that it is there, and is told by a push to a key of its own when to look. It asks the
line itself only when it is near the front, or now and then: a thousand waiters cost Redis next to nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from allocator.model.errors import AllocatorError, HeldError, LimitError
from allocator.protocol import decode
from allocator.protocol.claim import ClaimRequest, claim
from allocator.protocol.keys import script_keys, waiter_keys
from allocator.protocol.pools import pool_rules
from allocator.protocol.replies import Reply
from allocator.protocol.steps import AwaitTurn, Operation, ScriptCall

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from allocator.model.leases import Lease
    from allocator.protocol.context import Context

ALIVE_MS = 1_800
"""A waiter that is silent for so long is passed by: under the 2 s that a dead one may hold up the line."""
REFRESH_S = 0.95
LOOK_SLACK_S = 0.01
FRONT = 4
"""So many in front ask the line whenever they wake; those behind less often, the farther back the less."""


@dataclass(frozen=True, slots=True)
class Seat:
    """A place in line.

    Attributes:
        place: Its score, by which it is found again.
        ahead: How many are ahead that it may not overtake.
        look_s: After how many seconds one of those in front may be found gone, or None.
    """

    place: str
    ahead: int
    look_s: float | None


def join(context: Context, request: ClaimRequest, ticket: str, condition: str, seat: Seat | None) -> Operation[Seat]:
    """Take a place in line, or keep it."""
    pool = yield from pool_rules(context, request.pool)
    place = seat.place if seat else ""
    args = (ticket, "join", context.host, str(request.worker), request.priority, place, request.port or 0, condition)
    reply = decode.words((yield ScriptCall("wait", script_keys(pool.name, context.space(pool)), args)))
    if decode.text(reply[0]) == Reply.NO_POOL:
        yield from pool_rules(context, request.pool, fresh=True)
        return seat or Seat("", 1, None)
    look_ms = decode.number(reply[3])
    return Seat(
        decode.text(reply[1]), int(decode.number(reply[2])), look_ms / 1_000 + LOOK_SLACK_S if look_ms >= 0 else None
    )


def leave(context: Context, request: ClaimRequest, ticket: str) -> Operation[None]:
    """Give up a place in line; the next is told to look."""
    pool = yield from pool_rules(context, request.pool)
    yield ScriptCall("wait", script_keys(pool.name, context.space(pool)), (ticket, "leave"))


def claim_in_line(
    context: Context,
    request: ClaimRequest,
    *,
    deadline: float,
    rng: random.Random,
    worth_retrying: Callable[[BaseException], bool],
) -> Operation[Lease]:
    """Lease a port when it is this caller's turn.

    Args:
        context: Who calls.
        request: What it asks for.
        deadline: Until when it waits, in seconds of its monotonic clock.
        rng: The source of jitter.
        worth_retrying: Whether another attempt may succeed after an error.

    Raises:
        AllocatorError: The last one, when no port was had in time or none can be had by waiting.
    """
    ticket = context.new_token()[:16]
    token = request.token or context.new_token()  # the same at each attempt: one whose answer was lost is found again
    asked = replace(request, ticket=ticket, token=token)
    try:
        return (yield from _in_line(context, asked, ticket, deadline, rng, worth_retrying))
    except AllocatorError:
        yield from leave(context, asked, ticket)
        raise


def _in_line(
    context: Context,
    request: ClaimRequest,
    ticket: str,
    deadline: float,
    rng: random.Random,
    worth_retrying: Callable[[BaseException], bool],
) -> Operation[Lease]:
    condition = "one" if request.port else "any"
    seat: Seat | None = None
    woken = True
    last: AllocatorError | None = None
    while True:
        pause_s = REFRESH_S * rng.uniform(0.9, 1.0)
        if seat is None or woken or seat.ahead < FRONT or rng.random() < FRONT / seat.ahead:
            seat = yield from join(context, request, ticket, condition, seat)
            if seat.look_s is not None:
                pause_s = min(pause_s, seat.look_s)
        if seat.ahead == 0 or last is None:
            try:
                return (yield from claim(context, request))
            except AllocatorError as error:
                if not worth_retrying(error):
                    raise
                last = error
                condition = "limited" if _held_back(request, error) else "one" if request.port else "any"
                if error.retry_after is not None:
                    pause_s = min(pause_s, error.retry_after + rng.uniform(0.0, LOOK_SLACK_S))
                if condition == "limited":  # say so at once: nobody else shall wait for it
                    seat = yield from join(context, request, ticket, condition, seat)
        left_s = deadline - context.clock()
        if left_s <= 0:
            raise last
        waiter, turn = waiter_keys(request.pool, ticket)
        said = f"{request.port or 0} {condition} {request.worker}"
        woken = yield AwaitTurn(waiter, said, turn, ALIVE_MS, min(pause_s, left_s))


def _held_back(request: ClaimRequest, error: AllocatorError) -> bool:
    """Return whether a claim waits for something else than a port: it must not keep others from one."""
    if isinstance(error, HeldError):
        return request.port is None or (error.holder is not None and error.holder.worker == request.worker)
    return isinstance(error, LimitError)
