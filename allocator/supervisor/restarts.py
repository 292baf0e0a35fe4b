"""Whether and when a worker that ended is started again. No I/O, no clock: it is given what happened."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

from allocator.model.backoff import Backoff
from allocator.model.values import Value

if TYPE_CHECKING:
    import random

LONGEST_PAUSE_S = 30.0
BACKOFF = Backoff(first=0.5, longest=LONGEST_PAUSE_S)


class RestartMode(StrEnum):
    """After which ends a worker is started again."""

    NEVER = "never"
    ON_FAILURE = "on-failure"
    ALWAYS = "always"


class Restarts(Value, frozen=False):
    """The restarts of one worker.

    Attributes:
        mode: After which ends it is started again.
        most: How many times in a row, without a healthy minute between.
        rng: The source of jitter.
        in_a_row: How many there were since the last healthy minute.
        total: How many there were at all.
    """

    mode: RestartMode
    most: int
    rng: random.Random
    in_a_row: int = 0
    total: int = 0

    def pause_s(self, status: int, *, was_well: bool) -> float | None:
        """Return after how many seconds to start again a worker that ended with `status`, or None for not at all.

        Args:
            status: What it exited with, 128 + n for signal n.
            was_well: Whether it had been healthy for a minute: its former failures do not count then.
        """
        if was_well:
            self.in_a_row = 0
        wanted = self.mode is RestartMode.ALWAYS or (self.mode is RestartMode.ON_FAILURE and status != 0)
        if not wanted or self.in_a_row >= self.most:
            return None
        self.in_a_row += 1
        return BACKOFF.pause(self.in_a_row, self.rng)
