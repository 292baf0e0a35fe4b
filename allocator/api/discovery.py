"""The routes for finding workers: the next worker of a service, and scrape targets for Prometheus (`http_sd`)."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Path, Query, Request
from pydantic import BaseModel

from allocator.api.access import Reader, Taker
from allocator.api.claims import MAX_POOLS
from allocator.api.models import MAX_PLUGIN_LENGTH, MAX_WAIT_S, NAME_PATTERN, PLUGIN_PATTERN, EndpointBody
from allocator.api.routes import PoolName, claims_of, problems
from allocator.discovery.memory import AddressMemory, ServiceName
from allocator.model.endpoints import Sighting
from allocator.model.errors import AllocatorError
from allocator.model.names import MAX_NAME_LENGTH
from allocator.model.states import LeaseState
from allocator.operations import listing
from allocator.operations.context import read_pool
from allocator.protocol.keys import events_key

if TYPE_CHECKING:
    from allocator.client.aio import AsyncPortAllocator

router = APIRouter(prefix="/v1", tags=["discovery"])

SCRAPED_STATES = frozenset({LeaseState.READY, LeaseState.DEGRADED})
EVENTS_AT_ONCE = 1_000
FORGOTTEN_AFTER_S = 600.0
"""What was not scraped for longer is not known any more: Prometheus asks once a minute."""
PathPlugin = Annotated[str, Path(pattern=PLUGIN_PATTERN, max_length=MAX_PLUGIN_LENGTH)]
PathName = Annotated[str, Path(pattern=NAME_PATTERN, max_length=MAX_NAME_LENGTH)]


@router.get("/resolve/{plugin:path}/{org}", responses=problems(404, 409))
async def resolve(
    request: Request,
    _caller: Taker,
    plugin: PathPlugin,
    org: PathName,
    wait_s: Annotated[float, Query(ge=0, le=MAX_WAIT_S, description="How long to wait for a ready worker.")] = 0.0,
    pool: PoolName = None,
) -> EndpointBody:
    """Return the next ready worker of a service, each in turn, whoever asks; 409 when none is ready."""
    found = await claims_of(request).pool(pool).resolve(plugin, org=org, wait=wait_s or None)
    return EndpointBody.model_validate(found.as_json())


class TargetGroup(BaseModel):
    """One worker in the form that Prometheus reads."""

    targets: list[str]
    labels: dict[str, str]


class KnownTargets:
    """The workers of one pool that are up, between two scrapes: what Redis lost meanwhile is known for one more TTL.

    Args:
        at: Reads the pool.
    """

    def __init__(self, at: AsyncPortAllocator) -> None:
        self._at = at
        self._memory = AddressMemory(SCRAPED_STATES)
        self._services: set[ServiceName] = set()
        self._cursor: str | None = None
        self._is_away = False
        self._reading = asyncio.Lock()

    async def read(self) -> list[Sighting]:
        """Return the workers that are up, by service, host and port.

        Raises:
            AllocatorError: When Redis cannot be read.
        """
        async with self._reading:
            try:
                await self._read()
            except AllocatorError:
                self._is_away = True
                raise
        return [one for service in sorted(self._memory.services()) for one in self._memory.good(service)]

    async def _read(self) -> None:
        pool, stream = self._at.session.pool, events_key(self._at.session.pool)
        newest = await self._at.run(listing.newest_event(pool))
        rules = await self._at.run(read_pool(pool))
        leases = await self._at.leases()
        addresses = {host.name: host.address for host in await self._at.hosts()} if leases else {}
        now_ms = await self._at.store.server_time() * 1_000
        if self._is_away:
            self._memory.doubt()
            self._is_away = False
        self._memory.is_fleet = rules is not None and rules.scope == "fleet"
        self._services = self._memory.services() | {(lease.plugin, lease.org) for lease in leases}
        self._memory.see(
            self._services, [Sighting.of(lease, addresses.get(lease.host, ""), now_ms) for lease in leases]
        )
        # Read after the leases: so one that is missing and ended has its event here.
        cursor = self._cursor if self._cursor is not None else newest
        while events := await self._at.store.read_events(stream, cursor, EVENTS_AT_ONCE):
            for _, fields in events:
                self._memory.hear(fields)
            cursor = events[-1][0]
        self._cursor = cursor


class Targets:
    """What is known of the pools that are scraped; of those that were not for some minutes, nothing."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, tuple[float, KnownTargets]] = OrderedDict()

    def of(self, at: AsyncPortAllocator) -> KnownTargets:
        """Return what is known of a pool."""
        now, pool = time.monotonic(), at.session.pool
        read_at, known = self._known.pop(pool, (now, None))
        if known is None or now - read_at > FORGOTTEN_AFTER_S:
            known = KnownTargets(at)
        self._known[pool] = (now, known)
        if len(self._known) > MAX_POOLS:
            self._known.popitem(last=False)
        return known


@router.get("/prometheus/targets", responses=problems(404))
async def prometheus_targets(request: Request, _caller: Reader, pool: PoolName = None) -> list[TargetGroup]:
    """Return the workers that are up as targets for `http_sd_configs`: `[]` when there are none.

    When Redis is away the answer is a 503, at which Prometheus keeps the targets that it has. A target whose lease
    Redis lost (it was emptied, or started again without its data) stays for one TTL, in which its holder renews it.
    """
    targets: Targets = request.app.state.targets
    return [
        TargetGroup(
            targets=[str(one.endpoint)],
            labels={
                "org": one.lease.org,
                "plugin": one.lease.plugin,
                "worker": str(one.lease.worker),
                "pool": one.lease.pool,
                "__meta_portlease_host": one.lease.host,
                "__meta_portlease_state": str(one.lease.state),
            },
        )
        for one in await targets.of(claims_of(request).pool(pool)).read()
    ]
