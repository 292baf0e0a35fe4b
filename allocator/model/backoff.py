"""How long to wait before something that failed is tried again: the one policy of all that try again.

Source: "full jitter" is from M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
"""

from __future__ import annotations

import random

from allocator.model.values import Value

MOST_DOUBLINGS = 30
_rng = random.Random()  # noqa: S311  # jitter, not a secret


class Backoff(Value):
    """Pauses that double with each failure in a row, up to a longest one, spread at random.

    Attributes:
        first: The longest that the pause after the first failure may be, in seconds or as a part of something.
        longest: The longest that any may be.
        least: Which part of a pause is never cut by the spread: 0 for full jitter.
    """

    first: float
    longest: float
    least: float = 0.0

    def pause(self, failures: int, rng: random.Random = _rng) -> float:
        """Return how long to wait after that many failures in a row, one or more."""
        ceiling = min(self.longest, self.first * 2.0 ** min(max(0, failures - 1), MOST_DOUBLINGS))
        return rng.uniform(self.least * ceiling, ceiling)
