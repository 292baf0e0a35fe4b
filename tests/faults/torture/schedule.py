"""Which fault happens when and for how long: a function of the seed and the round's number alone."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torture.faults import Fault

GAP_S = 1.3
"""Between the begins of two faults on average: with their lengths, two or three overlap now and then."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A fault to come.

    Attributes:
        at_s: Seconds from the beginning of the round.
        lasts_s: From its being done to its being undone.
    """

    kind: type[Fault]
    at_s: float
    lasts_s: float
    seed: int


def plan(seed: int, number: int, seconds: float, kinds: list[type[Fault]], *, lossy: bool) -> list[Planned]:
    """Return the faults of a round, in the order of their begins.

    A round has a theme: of all kinds, one alone, a few, or all.

    Args:
        seed: Of the run.
        number: Of the round.
        seconds: How long the round is.
        kinds: The kinds of faults to choose from.
        lossy: Whether there may be such as lose data; without, nothing is excused by that.
    """
    rng = random.Random(f"{seed}/{number}")
    allowed = [kind for kind in kinds if lossy or not kind.lossy]
    width = rng.choice((1, 3, 5, len(allowed), len(allowed)))
    theme = sorted(rng.sample(allowed, min(width, len(allowed))), key=lambda kind: kind.name)
    found = []
    at = rng.uniform(0.5, 1.5)
    while at < seconds:
        kind = rng.choice(theme)
        found.append(Planned(kind, at, rng.uniform(*kind.seconds), rng.randrange(2**31)))
        at += rng.expovariate(1 / GAP_S)
    return found
