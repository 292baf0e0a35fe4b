"""Interleaved timing: all cases of a comparison take turns, so that a busy machine is busy for each of them."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

T = TypeVar("T")


@dataclass(frozen=True)
class Spread:
    """A median with its quartiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return the spread of at least two values."""
        low, _, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(statistics.median(values), low, high)


def take_turns(cases: dict[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """Return what each case measured in each round; the order is reversed every other round."""
    results: dict[str, list[T]] = {name: [] for name in cases}
    for at in range(rounds):
        order = list(cases)
        for name in reversed(order) if at % 2 else order:
            results[name].append(cases[name]())
    return results


def ratios(ours: Sequence[float], baseline: Sequence[float]) -> Spread:
    """Return ours/baseline round by round."""
    return Spread.of([a / b for a, b in zip(ours, baseline, strict=True)])


def seconds_for(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began
