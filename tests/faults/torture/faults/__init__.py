"""The faults. Each is a class with a name, what it does, what undoes it, and what it may excuse.

A fault that finds nothing to do (the server is down already, nobody is left to be killed) raises `NothingToDoError` and
is not counted. `does` and `undoes` run in a thread of the fault's own.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, ClassVar

ANYWHERE = frozenset({"standalone", "sentinel", "cluster"})
ONE_HOME = frozenset({"standalone", "cluster"})
"""Where a server that is silent for a while is not replaced by another."""

if TYPE_CHECKING:
    from torture.environment import Environment


class NothingToDoError(Exception):
    """There is nothing that this fault could be done to now."""


class Fault:
    """One fault, once.

    Attributes:
        seconds: For how long it lasts, from and to.
        holds_back: Whether what was sent in its time may take effect only at its end.
        repeats: Whether what was sent in its time may take effect twice.
        lossy: Whether it may lose data.
        topologies: Where it is done; see `torture.topologies`.
        counted_as: Its name, more exactly where that is known.
        loses_since: From when on confirmed writes may be lost; set by `does`.
        jump_s: By how much the server's clock went ahead; set by `does`.
        echoes_s: How long after its end it still holds back or repeats.
    """

    name: ClassVar[str]
    seconds: ClassVar[tuple[float, float]] = (0.3, 2.5)
    holds_back: ClassVar[bool] = False
    repeats: ClassVar[bool] = False
    lossy: ClassVar[bool] = False
    topologies: ClassVar[frozenset[str]] = frozenset({"standalone"})
    echoes_s: float = 0.0

    def __init__(self, arena: Environment, seed: int) -> None:
        self.arena = arena
        self.rng = random.Random(seed)
        self.loses_since: float | None = None
        self.jump_s = 0.0
        self.counted_as = self.name

    def does(self) -> None:
        """Do it."""
        raise NotImplementedError

    def undoes(self) -> None:
        """Undo it, where it does not end by itself."""
