"""A host of a pool and its ports in memory, as the index keeps them: what each port is, and what a search finds."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from allocator.model.leases import Lease
    from allocator.model.problems import Problem
    from allocator.protocol.signatures.inspect import KnownHost

STATES = ("starting", "ready", "degraded", "draining")
RESTING = ("quarantined", "cooling")
LETTERS = {
    "starting": "s",
    "ready": "r",
    "degraded": "d",
    "draining": "n",
    "quarantined": "q",
    "cooling": "c",
    "stranger": "x",
}
"""How a port is written in a host's row; `.` is a free one."""


Rank = tuple[int, float, str, int]
"""Where a problem is among others, the least one first."""


@dataclass(slots=True)
class Cell:
    """A port that is not free.

    Attributes:
        status: The state of its lease, or why it rests.
        since: Since when, in Unix seconds; None when nobody knows.
        fence: The fence of its last grant.
        until: Until when it rests; None for a lease.
        lease: Its lease, or None.
        judged: What is wrong with the lease, behind the lease and the time that this was found of.
        searched: What a search looks through, behind the lease that it was made of.
    """

    status: str
    since: float | None
    fence: int
    until: float | None = None
    lease: Lease | None = None
    judged: tuple[Lease, float | None, Problem | None] | None = None
    searched: tuple[Lease, str] | None = None

    @property
    def text(self) -> str:
        """What a search looks through, made when one does."""
        if self.lease is None:
            return ""
        if self.searched is None or self.searched[0] is not self.lease:
            self.searched = self.lease, searched_text(self.lease)
        return self.searched[1]


class Judged(NamedTuple):
    """What is wrong with a host.

    Attributes:
        until: Until when this holds while nothing changes, in Unix seconds.
        severity: How bad the worst is; 0 when nothing is wrong.
        problems: Worst first.
        besides_room: The same list, or a shorter one without the problem that it has no free port.
        rank: Where the first of all problems is among those of other hosts; None without one.
        rank_besides_room: The same for the other list.
    """

    until: float
    severity: int
    problems: list[Problem]
    besides_room: list[Problem]
    rank: Rank | None
    rank_besides_room: Rank | None


@dataclass(slots=True)
class HostEntry:
    """A host and its ports that are not free.

    Attributes:
        name: The host.
        known: What Redis has of it.
        cells: By port.
        heard_at: When its last heartbeat is known to have been.
        condition_since: Since when it is cordoned or draining, where an event reported it.
        changed_at: When an event changed it last.
        rested_at: When the first of its ports that rest will have done so.
        late: That nobody renews its leases, as it was read.
        judged: What is wrong with it, until it changes.
        counted: Its counts, until it changes.
        drawn: It as JSON, behind what is wrong with it, until it changes.
    """

    name: str
    known: KnownHost | None = None
    cells: dict[int, Cell] = field(default_factory=dict)
    heard_at: float | None = None
    condition_since: float | None = None
    changed_at: float = 0.0
    rested_at: float = math.inf
    late: Problem | None = None
    judged: Judged | None = None
    counted: Counter[str] | None = None
    drawn: tuple[Judged, str] | None = None

    @property
    def leases(self) -> list[Lease]:
        """Its live leases."""
        return [cell.lease for cell in self.cells.values() if cell.lease]

    def counts(self) -> Counter[str]:
        """Return how many ports it has of each status, the free ones left out."""
        if self.counted is None:
            self.counted = Counter(cell.status for cell in self.cells.values())
        return self.counted


def searched_text(lease: Lease) -> str:
    """Return what a search looks through for a lease, in small letters."""
    pid = f" pid:{lease.pid} {lease.pid}" if lease.pid is not None else ""
    labels = "".join(f" {name}={value}" for name, value in lease.labels.items())
    searched = f"{lease.address} {lease.worker} {lease.org} {lease.plugin} {lease.state}{pid}{labels}"
    return f"{searched} {lease.last_error or ''}".lower()
