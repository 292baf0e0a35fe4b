"""The routes for finding workers: the next worker of a service, and scrape targets for Prometheus (`http_sd`)."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request
from pydantic import BaseModel

from allocator.api.access import Reader
from allocator.api.models import MAX_PLUGIN_LENGTH, MAX_WAIT_S, NAME_PATTERN, PLUGIN_PATTERN, EndpointBody
from allocator.api.routes import PoolName, claims_of, problems
from allocator.model.endpoints import Endpoint
from allocator.model.names import MAX_NAME_LENGTH
from allocator.model.states import LeaseState

router = APIRouter(prefix="/v1", tags=["discovery"])

SCRAPED_STATES = frozenset({LeaseState.READY, LeaseState.DEGRADED})
PathPlugin = Annotated[str, Path(pattern=PLUGIN_PATTERN, max_length=MAX_PLUGIN_LENGTH)]
PathName = Annotated[str, Path(pattern=NAME_PATTERN, max_length=MAX_NAME_LENGTH)]


@router.get("/resolve/{plugin:path}/{org}", responses=problems(404, 409))
async def resolve(
    request: Request,
    _caller: Reader,
    plugin: PathPlugin,
    org: PathName,
    wait_s: Annotated[float, Query(ge=0, le=MAX_WAIT_S, description="How long to wait for a ready worker.")] = 0.0,
    pool: PoolName = None,
) -> EndpointBody:
    """Return the next ready worker of a service, each in turn, whoever asks; 409 when none is ready."""
    found = await claims_of(request).pool(pool).resolve(plugin, org=org, wait=wait_s or None)
    return EndpointBody.model_validate(found.as_json())


class TargetGroup(BaseModel):
    """One worker as Prometheus wants to be told of it."""

    targets: list[str]
    labels: dict[str, str]


@router.get("/prometheus/targets", responses=problems(404))
async def prometheus_targets(request: Request, _caller: Reader, pool: PoolName = None) -> list[TargetGroup]:
    """Return the workers that are up as targets for `http_sd_configs`: `[]` when there are none.

    When Redis is away the answer is a 503, at which Prometheus keeps the targets that it has.
    """
    at = claims_of(request).pool(pool)
    leases = await at.leases()
    addresses = {host.name: host.address for host in await at.hosts()} if leases else {}
    return [
        TargetGroup(
            targets=[str(Endpoint.of(lease, addresses.get(lease.host, "")))],
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
