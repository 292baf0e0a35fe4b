"""The last hour of the default pool, for the page: how full it was, how long claims took; a sample every ten seconds.

It is this process's own memory: a server that was started a minute ago shows a minute. Prometheus keeps more.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from typing import TYPE_CHECKING

from fastapi import APIRouter, Request
from pydantic import BaseModel

from allocator.api.access import Reader
from allocator.api.index import RESTING, STATES
from allocator.api.routes import problems
from allocator.model.errors import AllocatorError
from allocator.model.leases import written_time

if TYPE_CHECKING:
    from allocator.api.keeper import Keepers

router = APIRouter(prefix="/v1", tags=["fleet"])

EVERY_S = 10.0
KEPT = 360
log = logging.getLogger("allocator.api")


class Sample(BaseModel):
    """How things stood at one moment; the claims are those of this server since the sample before."""

    at: str
    size: int
    leased: int
    resting: int
    claims: int
    refused: int
    longest_wait_s: float


class Samples:
    """Takes samples of the default pool.

    Args:
        keepers: Whose index is looked at.
        pool: The pool.
    """

    def __init__(self, keepers: Keepers, pool: str) -> None:
        self._keepers = keepers
        self._pool = pool
        self.kept: deque[Sample] = deque(maxlen=KEPT)
        self._made = 0
        self._refused = 0
        self._longest_s = 0.0

    def on_claim(self, seconds: float, *, granted: bool) -> None:
        """Take in one claim."""
        self._made += granted
        self._refused += not granted
        self._longest_s = max(self._longest_s, seconds)

    async def run(self) -> None:
        """Take samples for ever; a Redis that is away leaves a gap."""
        while True:
            try:
                await self.take()
            except AllocatorError as error:
                log.debug("no sample: %s", error)
            await asyncio.sleep(EVERY_S)

    async def take(self) -> None:
        """Take one sample."""
        keeper = await self._keepers.of(self._pool)
        index = await keeper.ready()
        if not keeper.is_live:
            return
        totals = index.totals()
        leased = sum(totals[state] for state in STATES)
        self.kept.append(
            Sample(
                at=written_time(time.time()),
                size=totals["size"],
                leased=leased,
                resting=sum(totals[status] for status in RESTING),
                claims=self._made,
                refused=self._refused,
                longest_wait_s=round(self._longest_s, 4),
            )
        )
        self._made, self._refused, self._longest_s = 0, 0, 0.0


@router.get("/samples", responses=problems())
async def samples(request: Request, _caller: Reader) -> list[Sample]:
    """Return the last hour of the server's pool, a sample every ten seconds, oldest first."""
    found: Samples = request.app.state.samples
    return list(found.kept)
