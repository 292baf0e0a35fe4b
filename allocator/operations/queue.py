"""Waiting for a port in line: first come, first served for each space, the higher priority first.

A waiter tells Redis once a second that it is there, and is told by a push to a key of its own when to look. It asks the
line itself only when it is near the front, or now and then: a thousand waiters cost Redis next to nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Generic, TypeVar

from allocator.model.errors import AllocatorError, HeldError, LimitError
from allocator.operations.pools import pool_rules
from allocator.operations.steps import AwaitTurn, Operation, ask
from allocator.protocol.keys import waiter_keys
from allocator.protocol.replies import NoPool
from allocator.protocol.signatures.queue import JoinCall, LeaveCall

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from allocator.operations.claim import ClaimRequest
    from allocator.operations.context import Context

T = TypeVar("T")

ALIVE_MS = 1_800
"""A waiter that is silent for so long is passed by: under the 2 s that a dead one may hold up the line."""
REFRESH_S = 0.95
LOOK_SLACK_S = 0.01
FRONT = 4
"""So many in front ask the line whenever they wake; those behind less often, the farther back the less."""


BLOCK = -1
"""The port that somebody says to wait for who waits for a block of adjacent ones."""


@dataclass(frozen=True, slots=True)
class Seat:
    """A place in line.

    Attributes:
        place: Its score, by which it is found again.
        ahead: How many are ahead that it may not overtake.
        look_s: After how many seconds one of those in front may be found gone, or None.
        held: How many are ahead, on whatever host, whom the same thing holds back.
    """

    place: str
    ahead: int
    look_s: float | None
    held: int = 0

    @property
    def behind(self) -> int:
        """How far it is from the front of the line that it waits in, whichever that is."""
        return max(self.ahead, self.held)


@dataclass(frozen=True, slots=True)
class Wish(Generic[T]):
    """What somebody waits for.

    Attributes:
        request: What it asks for.
        attempt: Makes the operation that asks for it once.
        adjacent: Whether it is a block of adjacent ports.
    """

    request: ClaimRequest
    attempt: Callable[[ClaimRequest], Operation[T]]
    adjacent: bool = False

    @property
    def port(self) -> int:
        """The only port that will do; 0 for any, -1 for a block."""
        return BLOCK if self.adjacent else self.request.port or 0

    @property
    def condition(self) -> str:
        """What it waits for, as the line calls it."""
        return "block" if self.adjacent else "one" if self.request.port else "any"

    def condition_after(self, error: AllocatorError) -> str:
        """What it waits for after an attempt that failed: something else than a port must not keep others from one."""
        if isinstance(error, LimitError):
            return error.kind
        if isinstance(error, HeldError) and (
            self.request.port is None or (error.holder is not None and error.holder.worker == self.request.worker)
        ):
            return "worker"
        return self.condition


def join(context: Context, wish: Wish[T], ticket: str, condition: str, seat: Seat | None) -> Operation[Seat]:
    """Take a place in line, or keep it."""
    request = wish.request
    pool = yield from pool_rules(context, request.pool)
    place = seat.place if seat else ""
    found = yield from ask(
        JoinCall(
            pool=pool.name,
            space=context.space(pool),
            ticket=ticket,
            host=context.host,
            worker=str(request.worker),
            priority=request.priority,
            position=place,
            port=wish.port,
            condition=condition,
        )
    )
    if isinstance(found, NoPool):
        yield from pool_rules(context, request.pool, fresh=True)
        return seat or Seat("", 1, None)
    look_s = None if found.look_ms is None else found.look_ms / 1_000 + LOOK_SLACK_S
    return Seat(found.position, found.ahead, look_s, found.held)


def leave(context: Context, request: ClaimRequest, ticket: str) -> Operation[None]:
    """Give up a place in line; the next is told to look."""
    pool = yield from pool_rules(context, request.pool)
    yield from ask(
        LeaveCall(
            pool=pool.name,
            space=context.space(pool),
            ticket=ticket,
            host=context.host,
            worker=str(request.worker),
        )
    )


def claim_in_line(
    context: Context,
    wish: Wish[T],
    *,
    deadline: float,
    rng: random.Random,
    worth_retrying: Callable[[BaseException], bool],
) -> Operation[T]:
    """Lease what somebody waits for when it is their turn.

    Args:
        context: Who calls.
        wish: What they wait for.
        deadline: Until when they wait, in seconds of their monotonic clock.
        rng: The source of jitter.
        worth_retrying: Whether another attempt may succeed after an error.

    Raises:
        AllocatorError: The last one, when no port was had in time or none can be had by waiting.
    """
    ticket = context.new_token()[:16]
    # The same token at each attempt: one whose answer was lost is found again.
    asked = replace(wish.request, ticket=ticket, token=wish.request.token or context.new_token())
    try:
        return (yield from _in_line(context, replace(wish, request=asked), ticket, deadline, rng, worth_retrying))
    except AllocatorError:
        yield from leave(context, asked, ticket)
        raise


def _in_line(
    context: Context,
    wish: Wish[T],
    ticket: str,
    deadline: float,
    rng: random.Random,
    worth_retrying: Callable[[BaseException], bool],
) -> Operation[T]:
    condition = wish.condition
    seat: Seat | None = None
    woken = True
    last: AllocatorError | None = None
    while True:
        retry_after = None
        if woken and seat and seat.ahead:  # there is room for it now: what is left is the line here
            condition = wish.condition
        if seat is None or woken or _asks_now(seat, rng):
            seat = yield from join(context, wish, ticket, condition, seat)
        if last is None or (seat.ahead == 0 and (woken or seat.held == 0)):
            try:
                return (yield from wish.attempt(wish.request))
            except AllocatorError as error:
                if not worth_retrying(error):
                    raise
                last, retry_after = error, error.retry_after
            before, condition = condition, wish.condition_after(last)
            if condition != before:  # say so at once: nobody else shall wait for it
                seat = yield from join(context, wish, ticket, condition, seat)
                if seat.behind == 0:  # what held it back may have ended before it said so
                    continue
        left_s = deadline - context.clock()
        if left_s <= 0:
            raise last
        waiter, turn = waiter_keys(wish.request.pool, ticket)
        said = f"{wish.port} {condition} {wish.request.worker}"
        pause_s = min(left_s, _pause_s(seat, retry_after, rng))
        woken = yield AwaitTurn(waiter, said, turn, ALIVE_MS, pause_s)


def _pause_s(seat: Seat, retry_after: float | None, rng: random.Random) -> float:
    pause_s = REFRESH_S * rng.uniform(0.9, 1.0)
    if seat.look_s is not None:
        pause_s = min(pause_s, seat.look_s)
    if retry_after is not None:
        pause_s = min(pause_s, retry_after + rng.uniform(0.0, LOOK_SLACK_S))
    return pause_s


def _asks_now(seat: Seat, rng: random.Random) -> bool:
    """Return whether a waiter that nobody told to look asks the line all the same: seldom when it is far behind."""
    return seat.behind < FRONT or rng.random() < FRONT / seat.behind
