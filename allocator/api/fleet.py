"""The routes of pools and hosts: what they are, how full, which ports are not free and why; cordon."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Query, Request

from allocator.api.access import Admin, Forcer, Reader, ReaderOfAny
from allocator.api.models import (
    CordonBody,
    DrainBody,
    ForceBody,
    ForgottenBody,
    HostBody,
    HostDetail,
    LeaseBody,
    PoolBody,
    PortBody,
)
from allocator.api.problems import NOT_FOUND, ProblemError
from allocator.api.routes import HostName, PoolName, claims_of, problems
from allocator.kernel.socket_tables import listening_ports
from allocator.model.errors import ConfigurationError, InvalidInputError
from allocator.operations import hosts as whole_hosts
from allocator.operations import listing
from allocator.operations.end import Forced

if TYPE_CHECKING:
    from allocator.api.claims import Claims
    from allocator.api.keeper import Keepers
    from allocator.model.pools import PoolSpec

log = logging.getLogger("allocator.api")

router = APIRouter(prefix="/v1", tags=["fleet"])


@router.get("/pools", responses=problems())
async def pools(request: Request, caller: ReaderOfAny) -> list[PoolBody]:
    """Return the pools that Redis has, with their rules and how many of their ports are leased.

    The counts of a pool whose index is kept come from it, and are about half a second old.
    """
    claims = claims_of(request)
    keepers: Keepers = request.app.state.keepers
    found: list[PoolBody] = []
    unread: ConfigurationError | None = None
    for name in await claims.allocator.store.pool_names():
        if not caller.may_use(name):
            continue
        at = claims.pool(name)
        keeper = keepers.kept.get(name)
        try:
            if keeper is not None and keeper.index is not None and keeper.is_live:
                hosts, leased = len(keeper.index.shown), keeper.index.leased
            else:
                read = await at.hosts()
                hosts, leased = len(read), sum(host.leases for host in read)
            found.append(_pool(await at.pool(), hosts, leased, served=at is claims.allocator))
        except ConfigurationError as error:  # another program's key must not hide all pools
            unread = error
            log.warning("the pool %s is left out: %s", name, error)
    if unread is not None and not found:
        raise unread
    return found


def _pool(pool: PoolSpec, hosts: int, leased: int, *, served: bool) -> PoolBody:
    return PoolBody(
        name=pool.name,
        first=pool.first,
        last=pool.last,
        size=pool.size,
        scope=pool.scope,
        spill=pool.spill,
        ttl_s=pool.ttl_ms / 1_000,
        ttl_min_s=pool.ttl_min_ms / 1_000,
        ttl_max_s=pool.ttl_max_ms / 1_000,
        grace_s=pool.grace_ms / 1_000,
        cooldown_s=pool.cooldown_ms / 1_000,
        conventional={plugin: list(ports) for plugin, ports in sorted(pool.conventional.items())},
        hosts=hosts,
        leased=leased,
        served=served,
    )


@router.get("/hosts", responses=problems(404))
async def hosts(request: Request, _caller: Reader, pool: PoolName = None) -> list[HostBody]:
    """Return the hosts that have claimed in a pool."""
    claims = claims_of(request)
    at = claims.pool(pool)
    rules = await claims.rules(at)
    found = await at.hosts()
    leased = sum(host.leases for host in found)
    return [_host(host, rules, leased if rules.scope == "fleet" else host.leases) for host in found]


def _host(host: listing.HostView, rules: PoolSpec, taken: int) -> HostBody:
    return HostBody(
        name=host.name,
        leases=host.leases,
        free=max(0, rules.size - taken),
        cordoned=host.cordoned,
        draining=host.draining,
        address=host.address or None,
        machine=host.machine or None,
    )


@router.get("/hosts/{host}", responses=problems(404))
async def host(request: Request, _caller: Reader, host: HostName, pool: PoolName = None) -> HostDetail:
    """Return a host with every port that is not free: leased, quarantined, cooling, or bound by a stranger."""
    claims = claims_of(request)
    at = claims.pool(pool)
    rules = await claims.rules(at)
    ports = await _ports(claims, rules, host)
    found = await at.run(listing.host(rules.name, host, sum(port.lease is not None for port in ports)))
    if found is None:
        raise ProblemError(NOT_FOUND, f"host {host} is not known in pool {rules.name}; see /v1/hosts")
    taken = sum(port.port in rules for port in ports)
    shown = _host(found, rules, taken)
    return HostDetail(**shown.model_dump(), ports=ports, watched=host == claims.host)


async def _ports(claims: Claims, rules: PoolSpec, host: str) -> list[PortBody]:
    at = claims.pool(rules.name)
    namespace = rules.namespace_of(host)
    found = {}
    for view in await at.run(listing.ports(rules.name, namespace, quarantine=True)):
        lease = view.lease if view.lease and view.lease.host == host else None
        found[view.port] = PortBody(
            port=view.port,
            status=view.why,
            claimable_in_s=round(view.claimable_in_ms / 1_000, 3) if not view.lease else None,
            lease=LeaseBody.of(lease) if lease else None,
        )
    if host == claims.host:
        for port in sorted(listening_ports(rules.first, rules.last)):
            if port not in found or found[port].status != "leased":
                found[port] = PortBody(port=port, status="stranger", claimable_in_s=None, lease=None)
    return [found[port] for port in sorted(found)]


@router.post("/hosts/{host}/cordon", responses=problems(404))
async def cordon(
    request: Request,
    _caller: Admin,
    host: HostName,
    on: Annotated[bool, Query(description="false: let it give out ports again")] = True,
    pool: PoolName = None,
) -> CordonBody:
    """Make a host give out no new ports, or give them out again; its leases stay."""
    at = claims_of(request).pool(pool)
    try:
        changed = await at.run(listing.cordon(at.session.pool, host, on=on))
    except InvalidInputError as error:
        raise ProblemError(NOT_FOUND, str(error)) from None
    return CordonBody(host=host, cordoned=on, changed=changed)


@router.post("/hosts/{host}/drain", responses=problems(404))
async def drain(request: Request, _caller: Admin, host: HostName, pool: PoolName = None) -> DrainBody:
    """Empty a host: it gives out no new ports, its workers get no new requests and are stopped. Does not wait."""
    at = claims_of(request).pool(pool)
    try:
        marked = await at.run(whole_hosts.drain(at.session.pool, host))
    except InvalidInputError as error:
        raise ProblemError(NOT_FOUND, str(error)) from None
    return DrainBody(host=host, draining=marked, left=len(await at.leases(host=host)))


@router.post("/hosts/{host}/forget", responses=problems(404))
async def forget(
    request: Request, caller: Forcer, host: HostName, body: ForceBody, pool: PoolName = None
) -> ForgottenBody:
    """Remove a host that is gone for good, and end its live leases; the events keep who did it, and why.

    A holder that lives after all stops its worker at its next heartbeat. Needs the scope `force`.
    """
    at = claims_of(request).pool(pool)
    try:
        ended = await at.run(whole_hosts.forget(at.session.pool, host, forced=Forced(caller.name, body.reason)))
    except InvalidInputError as error:
        raise ProblemError(NOT_FOUND, str(error)) from None
    return ForgottenBody(host=host, ended=ended)
