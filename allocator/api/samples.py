"""The last hour of a pool, for the page: leases by state, claims and refusals, waits, restarts; every ten seconds.

It is this process's own memory: a server that was started a minute ago shows a minute. Prometheus keeps more. Pools are
sampled while somebody looks at them; the default pool always is.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from allocator.api.access import Reader
from allocator.api.cells import RESTING, STATES
from allocator.api.routes import PoolName, claims_of, problems
from allocator.model.errors import AllocatorError
from allocator.model.leases import written_time

if TYPE_CHECKING:
    from allocator.api.keeper import Keeper, Keepers

router = APIRouter(prefix="/v1", tags=["fleet"])

EVERY_S = 10.0
SAMPLES_PER_POOL = 360
log = logging.getLogger("allocator.api")


class Sample(BaseModel):
    """How a pool stood at one moment, and what happened since the sample before."""

    at: str
    size: int
    leased: int
    starting: int
    ready: int
    degraded: int
    draining: int
    resting: int
    restarts: Annotated[int, Field(description="Restarts of the live workers.")]
    claims: Annotated[int, Field(description="Ports granted in the whole pool, by its events.")]
    refused: Annotated[int, Field(description="Claims that this server refused.")]
    longest_wait_s: Annotated[float, Field(description="The longest claim through this server, waiting included.")]


class _PoolSamples:
    """The samples of one pool, and what was counted since the last."""

    def __init__(self) -> None:
        self.samples: deque[Sample] = deque(maxlen=SAMPLES_PER_POOL)
        self.granted = 0
        self.refused = 0
        self.longest_s = 0.0


class Samples:
    """Takes samples of the pools that somebody looks at.

    Args:
        keepers: Whose indexes are looked at.
        pool: The default pool, which is always looked at.
    """

    def __init__(self, keepers: Keepers, pool: str) -> None:
        self._keepers = keepers
        self._pool = pool
        self._by_pool: dict[str, _PoolSamples] = {pool: _PoolSamples()}

    def of(self, pool: str) -> list[Sample]:
        """Return the samples of a pool, oldest first."""
        return list(self._by_pool[pool].samples) if pool in self._by_pool else []

    def on_claim(self, pool: str, seconds: float, *, granted: bool) -> None:
        """Count one claim."""
        if found := self._by_pool.get(pool):
            found.refused += not granted
            found.longest_s = max(found.longest_s, seconds)

    async def run(self) -> None:
        """Take samples for ever; a Redis that is away leaves a gap."""
        while True:
            try:
                await (await self._keepers.of(self._pool)).ready()
            except AllocatorError as error:
                log.debug("no sample: %s", error)
            keepers = self._keepers.kept
            self._by_pool = {pool: self._by_pool.get(pool) or _PoolSamples() for pool in {self._pool, *keepers}}
            for pool, keeper in keepers.items():
                self._take(self._by_pool[pool], keeper)
            await asyncio.sleep(EVERY_S)

    def _take(self, found: _PoolSamples, keeper: Keeper) -> None:
        index = keeper.index
        if index is None or not keeper.is_live:
            return
        totals: Counter[str] = index.totals()
        is_first = not found.samples
        found.samples.append(
            Sample(
                at=written_time(time.time()),
                size=totals["size"],
                leased=sum(totals[state] for state in STATES),
                **{state: totals[state] for state in STATES},
                resting=sum(totals[status] for status in RESTING),
                restarts=sum(lease.restarts for entry in index.hosts.values() for lease in entry.leases),
                claims=0 if is_first else max(0, index.granted - found.granted),
                refused=found.refused,
                longest_wait_s=round(found.longest_s, 4),
            )
        )
        found.granted, found.refused, found.longest_s = index.granted, 0, 0.0


@router.get("/samples", responses=problems(404))
async def samples(request: Request, _caller: Reader, pool: PoolName = None) -> list[Sample]:
    """Return the last hour of a pool, a sample every ten seconds, oldest first."""
    found: Samples = request.app.state.samples
    return found.of(pool or claims_of(request).allocator.session.pool)
