"""When an attempt is made again that waits for events: an address that somebody looks for may come at any time."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from allocator.model.errors import NoWorkerError
from allocator.operations.steps import AwaitEvent, Operation
from allocator.protocol.keys import events_key

if TYPE_CHECKING:
    from collections.abc import Callable

    from allocator.operations.context import Context

JITTER_S = 0.02
"""Spreads the waiters that one event wakes; far below what a person notices."""

RETRY_S = 1.0
"""How often to look again without an event: it may have been trimmed off the stream."""

T = TypeVar("T")


def until_ready(context: Context, pool: str, wait_s: float, attempt: Callable[[], Operation[T]]) -> Operation[T]:
    """Make an attempt, again after each event of the pool until there is a worker; one that succeeds costs nothing.

    Args:
        context: Who asks.
        pool: The pool.
        wait_s: Time to wait, in seconds.
        attempt: Makes the operation.

    Raises:
        NoWorkerError: When there was none in time.
    """
    from allocator.operations import listing

    deadline = context.clock() + wait_s
    cursor: str | None = None
    while True:
        try:
            return (yield from attempt())
        except NoWorkerError:
            left_s = deadline - context.clock()
            if left_s <= 0:
                raise
        if cursor is None:  # what happens from here on is an event after this one
            cursor = yield from listing.newest_event(pool)
            continue
        seconds = min(left_s, RETRY_S + context.rng.uniform(0.0, JITTER_S))
        newer: str | None = yield AwaitEvent(events_key(pool), cursor, seconds)
        cursor = newer or cursor
