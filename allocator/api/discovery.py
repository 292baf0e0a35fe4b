"""The routes for finding workers: scrape targets for Prometheus (`http_sd`)."""

from __future__ import annotations

from fastapi import APIRouter, Request
from pydantic import BaseModel

from allocator.api.access import Reader
from allocator.api.routes import PoolName, claims_of, problems
from allocator.model.states import LeaseState

router = APIRouter(prefix="/v1", tags=["discovery"])

SCRAPED_STATES = frozenset({LeaseState.READY, LeaseState.DEGRADED})


class TargetGroup(BaseModel):
    """One worker as Prometheus wants to be told of it."""

    targets: list[str]
    labels: dict[str, str]


@router.get("/prometheus/targets", responses=problems(404))
async def prometheus_targets(request: Request, _caller: Reader, pool: PoolName = None) -> list[TargetGroup]:
    """Return the workers that are up as targets for `http_sd_configs`: `[]` when there are none.

    When Redis is away the answer is a 503, at which Prometheus keeps the targets that it has.
    """
    leases = await claims_of(request).pool(pool).leases()
    return [
        TargetGroup(
            targets=[lease.address],
            labels={
                "org": lease.org,
                "plugin": lease.plugin,
                "worker": str(lease.worker),
                "pool": lease.pool,
                "__meta_portlease_host": lease.host,
                "__meta_portlease_state": str(lease.state),
            },
        )
        for lease in leases
        if lease.state in SCRAPED_STATES
    ]
