"""What the scripts must do, in Python without a line of their cleverness: ports, holders and one clock.

Times are in milliseconds of a clock that the test moves. Real time goes on beside it, so a time that lies within
`BLUR_MS` of now is neither past nor future: then the model takes either answer of the server and learns from it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from allocator.model.leases import Lease

BLUR_MS = 3_000


@dataclass
class Held:
    """A lease as its holder knows it, and how it stands.

    Attributes:
        lease: The holder's copy.
        expires_at: When it ends without a renewal.
        ended: Whether its holder ended it, or it was superseded.
        may_return: Whether a newer holder of the port declined it since: whoever renews an older lease all the same is
            taken for the one that the port was refused for.
    """

    lease: Lease
    expires_at: float
    ended: bool = False
    may_return: bool = False


@dataclass
class LeaseModel:
    """Everything that was granted, and from when each port is claimable.

    Attributes:
        held: By token, all leases that were ever granted.
        free_at: By space and port, when the port is claimable again.
        quarantined: By space and port, how much longer than that a quarantine may be: it depends on how often.
        own: By space and port, the worker that may come back during the cooldown, and the cooldown's end.
        newest_fence: The highest fence seen.
    """

    offset: float = 0
    held: dict[str, Held] = field(default_factory=dict)
    free_at: dict[tuple[str, int], float] = field(default_factory=dict)
    quarantined: dict[tuple[str, int], float] = field(default_factory=dict)
    own: dict[tuple[str, int], str] = field(default_factory=dict)
    newest_fence: int = 0
    _started: float = field(default_factory=time.monotonic)

    def now(self) -> float:
        return self.offset + (time.monotonic() - self._started) * 1_000

    def passed(self, moment: float) -> bool | None:
        """Return whether a moment has passed; None when it is too near to say."""
        left = moment - self.now()
        return None if abs(left) < BLUR_MS else left < 0

    def surely_live(self) -> list[Held]:
        return [each for each in self.held.values() if not each.ended and self.passed(each.expires_at) is False]

    def surely_claimable(self, namespace: str, port: int) -> bool:
        return (
            self.passed(self.free_at.get((namespace, port), -1e12) + self.quarantined.get((namespace, port), 0)) is True
        )

    def granted(self, namespace: str, lease: Lease, grace_ms: float) -> None:
        key = (namespace, lease.port)
        self.held[lease.token or ""] = Held(lease, self.now() + lease.ttl_ms)
        self.free_at[key] = self.now() + lease.ttl_ms + grace_ms
        self.quarantined.pop(key, None)
        self.own.pop(key, None)
        self.newest_fence = max(self.newest_fence, lease.fence)

    def renewed(self, namespace: str, lease: Lease, grace_ms: float) -> None:
        held = self.held[lease.token or ""]
        held.lease, held.expires_at = replace(lease), self.now() + lease.ttl_ms
        held.ended = held.may_return = False
        self.free_at[namespace, lease.port] = self.now() + lease.ttl_ms + grace_ms
        self.quarantined.pop((namespace, lease.port), None)
        self.own.pop((namespace, lease.port), None)
        self.newest_fence = max(self.newest_fence, lease.fence)

    def ended(self, namespace: str, token: str, cools_ms: float, *, may_return: bool) -> None:
        held = self.held[token]
        held.ended = True
        key = (namespace, held.lease.port)
        self.free_at[key] = self.now() + cools_ms
        self.quarantined.pop(key, None)
        self.own.pop(key, None)
        if may_return:
            self.own[key] = str(held.lease.worker)

    def declined(self, token: str, same_port: Callable[[Lease, Lease], bool]) -> None:
        refused = self.held[token]
        for each in self.held.values():
            each.may_return |= each is not refused and same_port(each.lease, refused.lease)

    def forget_all(self) -> None:
        """Redis lost its data; the holders know what they know, and who ended a lease does not renew it."""
        self.held = {token: each for token, each in self.held.items() if not each.ended}
        self.free_at.clear()
        self.quarantined.clear()
        self.own.clear()
