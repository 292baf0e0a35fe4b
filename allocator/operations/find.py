"""Find: where workers are now, or how their last lease ended, whatever one has heard about them before."""

from __future__ import annotations

from typing import TYPE_CHECKING

from allocator.protocol.signatures.inspect import FindCall, Whereabouts
from allocator.protocol.wire import ask

if TYPE_CHECKING:
    from collections.abc import Sequence

    from allocator.model.names import WorkerId
    from allocator.model.pools import PoolSpec
    from allocator.operations.steps import Operation

BATCH = 256
"""Workers in one call: under 2 ms of server time."""


def find(pool: PoolSpec, workers: Sequence[WorkerId]) -> Operation[list[Whereabouts]]:
    """Return what Redis knows of workers, in their order."""
    space, found = pool.space_of("-"), list[Whereabouts]()
    for start in range(0, len(workers), BATCH):
        batch = tuple(str(worker) for worker in workers[start : start + BATCH])
        found += yield from ask(FindCall(pool=pool.name, space=space, workers=batch))
    return found
