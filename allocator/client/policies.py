"""When an attempt is made again: for how long a caller waits, for what, and how long the pause before it is.

A port that the kernel refused is replaced by another, at most `MAX_DECLINES` times and only when any port will do.
A caller who may wait tries again when the server says that a port can be free, with full jitter on top, or as soon as
an event of the pool says that something changed.

Source: "full jitter" is from M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from allocator.model.errors import (
    AllocatorError,
    CordonedError,
    ExhaustedError,
    HeldError,
    NoWorkerError,
    PortRefusedError,
)
from allocator.operations import listing
from allocator.operations.steps import AwaitEvent, Operation
from allocator.protocol.keys import events_key

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

MAX_DECLINES = 5
"""Five strangers in a row on ports that looked free are no race but a misconfigured host."""

JITTER_S = 0.02
"""Spreads the waiters that one event wakes; far below what a person notices."""

UNKNOWN_RETRY_S = 1.0
"""How often a claim looks again when nobody knows when a port can be free (strangers send no events)."""

T = TypeVar("T")


class ClaimPatience:
    """Decides, for one claim, what is tried again, after how long, and when it is enough.

    Args:
        wait_s: How long the caller is willing to wait, in seconds; None or 0 for not at all.
        any_port: Whether any port will do.
        clock: The monotonic clock, in seconds.
        rng: The source of jitter.
    """

    def __init__(self, *, wait_s: float | None, any_port: bool, clock: Callable[[], float], rng: random.Random) -> None:
        self._deadline = clock() + (wait_s or 0.0)
        self._any_port = any_port
        self._clock = clock
        self._rng = rng
        self._declines = 0

    @property
    def deadline(self) -> float:
        """Until when to wait, in seconds of the monotonic clock."""
        return self._deadline

    @property
    def patient(self) -> bool:
        """Whether there is still time to wait."""
        return self._clock() < self._deadline

    def worth_retrying(self, error: BaseException) -> bool:
        """Return whether another attempt may succeed where this one raised `error`."""
        if isinstance(error, PortRefusedError):
            self._declines += 1
            return self._any_port and self._declines <= MAX_DECLINES
        if isinstance(error, HeldError):
            return error.retry_after is not None and self.patient
        if isinstance(error, NoWorkerError):
            return self.patient
        return isinstance(error, ExhaustedError) and not isinstance(error, CordonedError) and self.patient

    def waits_after(self, error: BaseException) -> bool:
        """Return whether a claim that failed so goes on in line: there is time, and a port may become free."""
        return self.patient and not isinstance(error, PortRefusedError) and self.worth_retrying(error)

    def pause_s(self, error: AllocatorError) -> float:
        """Return for how many seconds to wait for an event before the next attempt."""
        jitter = self._rng.uniform(0.0, JITTER_S)
        if isinstance(error, PortRefusedError):
            return jitter
        floor = UNKNOWN_RETRY_S if error.retry_after is None else error.retry_after
        return max(0.0, min(floor + jitter, self._deadline - self._clock()))


def tried_again(patience: ClaimPatience, pool: str, attempt: Callable[[], Operation[T]]) -> Operation[T]:
    """Make an attempt, again as the policy says, woken by the events of the pool; one that succeeds costs nothing.

    Raises:
        AllocatorError: That of the last attempt.
    """
    cursor: str | None = None
    while True:
        try:
            return (yield from attempt())
        except AllocatorError as error:
            if not patience.worth_retrying(error):
                raise
            seconds = patience.pause_s(error)
        if cursor is None:  # what happens from here on is an event after this one
            cursor = yield from listing.newest_event(pool)
        elif seconds > 0:
            newer: str | None = yield AwaitEvent(events_key(pool), cursor, seconds)
            cursor = newer or cursor
