"""Find: where workers are now, or how their last lease ended, and which other name of a host means this one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from allocator.protocol.signatures.inspect import FindCall, InspectHostCall, Whereabouts
from allocator.protocol.wire import ask

if TYPE_CHECKING:
    from collections.abc import Sequence

    from allocator.model.names import WorkerId
    from allocator.model.pools import PoolSpec
    from allocator.operations.context import Context
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


def is_here(context: Context, pool: str, host: str) -> Operation[bool]:
    """Return whether a host of another name is this one under the name that it had before.

    It is the same machine in the same boot and the same network namespace; a clone of it has another boot.
    """
    if context.elsewhere:
        return False
    known = yield from ask(InspectHostCall(pool=pool, space=host))
    identity = known.identity.split()[:3]
    return "-" not in identity and identity == context.identity.split()
