"""The lines of the table: a figure, its spread, its target, and whether that was met."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.timing import Spread


@dataclass(frozen=True)
class Row:
    """One line of the table; `target` is empty where a figure has none."""

    what: str
    value: str
    spread: str
    target: str = ""
    met: bool | None = None

    def __str__(self) -> str:
        verdict = "" if self.met is None else ("yes" if self.met else "**no**")
        return f"| {self.what} | {self.value} | {self.spread} | {self.target} | {verdict} |"


def at_least(what: str, spread: Spread, target: float) -> Row:
    return Row(what, f"{spread.median:.2f}", between(spread, 2), f"≥ {target:.2f}", round(spread.median, 2) >= target)


def at_most(what: str, spread: Spread, target: float, unit: str = "", digits: int = 1) -> Row:
    met = round(spread.median, digits) <= target
    return Row(what, f"{spread.median:.{digits}f}{unit}", between(spread, digits), f"≤ {target:g}{unit}", met)


def plain(what: str, spread: Spread, unit: str = "", digits: int = 0) -> Row:
    return Row(what, f"{spread.median:,.{digits}f}{unit}", between(spread, digits))


def between(spread: Spread, digits: int) -> str:
    return f"{spread.low:,.{digits}f}-{spread.high:,.{digits}f}"
