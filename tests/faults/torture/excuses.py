"""What a fault excuses, and nothing else does. Each is as narrow as its reason allows.

- *Lost data.* A server that was emptied, that came back with less than it had confirmed, or that was replaced by a
  replica which had not yet heard, cannot know what it forgot (docs/explanation/guarantees.md, "Losing data": the kernel
  arbitrates). It excuses that a lease and a newer one overlap where the first was confirmed by what may be lost and the
  second granted after. It never excuses a grant of a port that its holder listens on. Where two servers were in charge
  for a while, each may have granted the port; the older grant is confirmed until the newer one's holder renews.
- *A clock that goes ahead* by more than the grace ends leases early ("What it rests on"). The jumps between the
  confirmation and the grant are added up; up to the grace they excuse nothing but that the grace itself was shorter.
- *A clock that goes back* lengthens leases by as much. With data lost before the clock has caught up, the last fence is
  forgotten and the floor under the next one, the server's time, is below it.
- *A host's next start.* A container that starts again under its name ends at once what its dead processes held. Where
  the clock went ahead meanwhile it may take the living for dead: what they renewed seems older than its own begin.
- *Late arrival.* What was sent before a holder's death, and held back by a stopped server or on its way, takes effect
  when that ends; a claim that was sent twice may be carried out again after it was given back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torture.history import SUCCESSOR

if TYPE_CHECKING:
    from torture.history import Fault, History

LATE_S = 0.5
"""How long a request may be under way on one busy machine when no fault holds it back."""


@dataclass(frozen=True, slots=True)
class Excuses:
    """The faults of a history, asked for what they excuse."""

    losses: tuple[Fault, ...]
    jumps: tuple[Fault, ...]
    holding: tuple[Fault, ...]
    repeating: tuple[Fault, ...]
    successors: tuple[Fault, ...]
    grace_s: float
    in_cluster: bool

    @classmethod
    def of(cls, history: History) -> Excuses:
        faults = sorted(history.faults, key=lambda fault: fault.began)
        return cls(
            tuple(fault for fault in faults if fault.loses_since is not None),
            tuple(fault for fault in faults if fault.jump_s),
            tuple(fault for fault in faults if fault.holds_back),
            tuple(fault for fault in faults if fault.repeats),
            tuple(fault for fault in faults if fault.name == SUCCESSOR),
            history.grace_s,
            history.kind_of_redis == "cluster",
        )

    def may_be_lost(self, began: float, ended: float, before: float) -> bool:
        """Return whether what was confirmed in `began`-`ended` may have been lost by something seen until `before`."""
        return any(
            ended >= (fault.loses_since or 0.0) and began <= fault.ended and before >= fault.began
            for fault in self.losses
        )

    def went_ahead_s(self, since: float, until: float) -> float:
        """Return by how much the clock may have been ahead at most, between two times, of where it was at the first."""
        ahead = most = 0.0
        for fault in self.jumps:
            surely_between = since <= fault.began and fault.ended <= until
            if _meets(fault, since, until) and (fault.jump_s > 0 or surely_between):
                ahead += fault.jump_s
                most = max(most, ahead)
        return most

    def went_back_s(self, since: float, until: float) -> float:
        """Return by how much the clock may have gone back between two times."""
        return -sum(fault.jump_s for fault in self.jumps if fault.jump_s < 0 and _meets(fault, since, until))

    def ends_early(self, since: float, until: float) -> bool:
        """Return whether a lease confirmed at `since` may have run out, grace and all, by `until` for the server."""
        ahead_s = self.went_ahead_s(since, until)
        return ahead_s > self.grace_s or (ahead_s > 0 and any(_meets(one, since, until) for one in self.successors))

    def left_behind_at(self, died: float, before: float) -> float | None:
        """Return from when on what somebody held who died then may have been ended by its host's next start."""
        begins = (max(died, one.began) for one in self.successors if one.ended >= died)
        return min((at for at in begins if at <= before), default=None)

    def fence_may_shrink(self, since: float, until: float) -> bool:
        """Return whether data was lost between two times while the clock was behind where it had been before."""
        return any(
            _meets(loss, since, until)
            and jump.jump_s < 0
            and loss.began <= jump.ended - jump.jump_s + LATE_S
            and jump.began <= until
            for loss in self.losses
            for jump in self.jumps
        )

    def arrives(self, sent: float) -> float:
        """Return when what was sent by `sent` has surely taken effect."""
        at = sent + LATE_S
        for fault in self.holding:
            if fault.began <= at and sent <= fault.ended:
                at = max(at, fault.ended + LATE_S)
        return at

    def repeated(self, began: float, ended: float) -> bool:
        """Return whether what was sent then may have been sent more than once, by the network or by the client library.

        redis-py's client of a Cluster sends again by itself, unseen, what a server was silent about for too long.
        """
        faults = (*self.repeating, *self.holding) if self.in_cluster else self.repeating
        return any(_meets(fault, began, ended) for fault in faults)


def _meets(fault: Fault, since: float, until: float) -> bool:
    return fault.began <= until and since <= fault.ended
