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
from allocator.api.routes import problems
from allocator.model.errors import AllocatorError
from allocator.model.leases import written_time
from allocator.operations import listing

if TYPE_CHECKING:
    from allocator.api.claims import Claims

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
        claims: What is looked at.
    """

    def __init__(self, claims: Claims) -> None:
        self._claims = claims
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
        at = self._claims.pool(None)
        rules = await self._claims.rules(at)
        size = leased = resting = 0
        for space in await at.run(listing.port_spaces(rules)):
            views = await at.run(listing.ports(rules.name, space))
            size += rules.size
            leased += sum(view.lease is not None for view in views)
            resting += sum(view.lease is None for view in views)
        self.kept.append(
            Sample(
                at=written_time(time.time()),
                size=size,
                leased=leased,
                resting=resting,
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
