"""Find: where workers are now, or how their last lease ended, whatever one has heard about them before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from allocator.operations.context import space_of
from allocator.protocol import decode
from allocator.protocol.calls import ScriptCall
from allocator.protocol.keys import script_keys
from allocator.protocol.replies import Reply

if TYPE_CHECKING:
    from collections.abc import Sequence

    from allocator.model.leases import Lease
    from allocator.model.names import WorkerId
    from allocator.model.pools import PoolSpec
    from allocator.operations.steps import Operation

BATCH = 256
"""Workers in one call: under 2 ms of server time."""


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """What Redis knows of a worker.

    Attributes:
        host: Where its last lease is or was; None when Redis knows nothing of it.
        port: Which port that is.
        fence: The fence of that lease; 0 when Redis knows nothing of it.
        how: `live`, or how it ended: `released`, `declined`, `expired`, `replaced`; `unknown`.
        lease: The live lease, without its token, or None.
    """

    host: str | None
    port: int | None
    fence: int
    how: Reply
    lease: Lease | None

    def explains_end_of(self, fence: int | None) -> bool:
        """Return whether Redis knows that the lease with this fence has ended: a newer one is known, or its end."""
        if fence is None or fence > self.fence:
            return False
        return fence < self.fence or self.how not in {Reply.LIVE, Reply.UNKNOWN}


def find(pool: PoolSpec, workers: Sequence[WorkerId]) -> Operation[list[Whereabouts]]:
    """Return what Redis knows of workers, in their order."""
    keys = script_keys(pool.name, space_of(pool, "-"))
    found: list[Whereabouts] = []
    for start in range(0, len(workers), BATCH):
        batch = workers[start : start + BATCH]
        reply = decode.words((yield ScriptCall("find", keys, tuple(map(str, batch)))))
        now_ms = decode.number(reply[0])
        for at in range(1, 6 * len(batch), 6):
            host, port, fence, how, lease, remaining_ms = reply[at : at + 6]
            found.append(
                Whereabouts(
                    decode.text(host) or None,
                    int(decode.number(port)) if port else None,
                    int(decode.number(fence)) if fence else 0,
                    Reply(decode.text(how)),
                    decode.lease(pool.name, lease, remaining_ms=decode.number(remaining_ms), now_ms=now_ms)
                    if lease
                    else None,
                )
            )
    return found
