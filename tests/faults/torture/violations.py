"""What a rule yields."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Violation:
    """A promise that was broken, and the evidence."""

    rule: str
    what: str
    evidence: tuple[Any, ...] = ()

    def __str__(self) -> str:
        return "\n    ".join([f"{self.rule}: {self.what}", *map(str, self.evidence)])
