"""A host of a pool and its ports in memory, as the index keeps them: what each port is, and what a search finds."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

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


@dataclass(slots=True)
class Cell:
    """A port that is not free.

    Attributes:
        status: The state of its lease, or why it rests.
        since: Since when, in Unix seconds; None when nobody knows.
        fence: The fence of its last grant.
        until: Until when it rests; None for a lease.
        lease: Its lease, or None.
        is_whole: Whether all of the lease was read, not only what an event contains.
        text: What a search looks through.
    """

    status: str
    since: float | None
    fence: int
    until: float | None = None
    lease: Lease | None = None
    is_whole: bool = True
    text: str = ""

    def __post_init__(self) -> None:
        if self.lease is not None:
            self.text = searched_text(self.lease)


@dataclass(slots=True)
class HostEntry:
    """A host and its ports that are not free.

    Attributes:
        name: The host.
        known: What Redis has of it.
        cells: By port.
        heard_at: When its last heartbeat is known to have been.
        read_at: When it was read last, by the server's clock.
        condition_since: Since when it is cordoned or draining, where an event reported it.
        changed_at: When an event changed it last.
        late: That nobody renews its leases, as it was read.
        judged: What is wrong with it, and when that was found.
        counted: Its counts, until it changes.
        drawn: It as JSON, with the problems that this goes by, until it changes.
    """

    name: str
    known: KnownHost | None = None
    cells: dict[int, Cell] = field(default_factory=dict)
    heard_at: float | None = None
    read_at: float = 0.0
    condition_since: float | None = None
    changed_at: float = 0.0
    late: Problem | None = None
    judged: tuple[float, list[Problem]] | None = None
    counted: Counter[str] | None = None
    drawn: tuple[list[Problem], str] | None = None

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
    words = f"{lease.address} {lease.worker} {lease.org} {lease.plugin} {lease.state}{pid}{labels}"
    return f"{words} {lease.last_error or ''}".lower()
