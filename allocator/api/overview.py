"""The routes of a whole pool at a glance: its hosts and counts, what is wrong, a search, its services. From the index.

All are of one pool, paged by `offset` and `limit`, and state whether the index follows the events just now (`live`).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field

from allocator.api.access import Reader
from allocator.api.models import LeaseBody
from allocator.api.routes import PoolName, claims_of, problems
from allocator.model.leases import written_time
from allocator.model.states import LeaseState

if TYPE_CHECKING:
    from allocator.api.cells import HostEntry
    from allocator.api.index import FleetIndex
    from allocator.api.keeper import Keeper, Keepers
    from allocator.model.problems import Problem

router = APIRouter(prefix="/v1", tags=["fleet"])

MOST_HOSTS = 1_000
MOST_ROWS = 500
Offset = Annotated[int, Query(ge=0, le=1_000_000, description="`next` of the page before.")]
HostsLimit = Annotated[int, Query(ge=1, le=MOST_HOSTS)]
RowsLimit = Annotated[int, Query(ge=1, le=MOST_ROWS)]


class Counts(BaseModel):
    """How many ports there are of each status."""

    free: int
    starting: int
    ready: int
    degraded: int
    draining: int
    quarantined: int
    cooling: int
    stranger: int


class FleetHost(BaseModel):
    """A host of a pool: its counts, and how bad the worst of it is (0: nothing is wrong)."""

    name: str
    counts: Counts
    cordoned: bool
    draining: bool
    heard_at: Annotated[str | None, Field(description="When its last heartbeat is known to have been.")]
    severity: Annotated[int, Field(ge=0, le=3)]
    problems: int
    ports: Annotated[
        str | None,
        Field(description="A letter for each port, lowest first: `.` free, s, r, d, n draining, q, c, x stranger."),
    ]


class OverviewPage(BaseModel):
    """What all pages of an overview state of themselves."""

    pool: str
    live: Annotated[bool, Field(description="Whether this follows the events of the pool just now.")]
    at: Annotated[str, Field(description="The server's time.")]
    total: int
    next: Annotated[
        int | None, Field(description="What to give as `offset` for the next page; null: this is the last.")
    ]


class FleetBody(OverviewPage):
    """A pool by its hosts, worst first."""

    first: int
    last: int
    scope: str
    version: Annotated[int, Field(description="Changes whenever something in here did.")]
    size: int
    counts: Counts
    problems: int
    hosts: list[FleetHost]


class ProblemRow(BaseModel):
    """Something that is wrong, and what to do about it."""

    check: str
    severity: Annotated[int, Field(ge=1, le=3, description="1 notice, 2 warning, 3 critical")]
    what: str
    command: Annotated[str, Field(description="What to do about it, to be typed or copied.")]
    host: str | None
    port: int | None
    worker: str | None
    since: str | None


class ProblemsBody(OverviewPage):
    """What is wrong in a pool, worst first."""

    problems: list[ProblemRow]


class SearchBody(OverviewPage):
    """What a search found: hosts by name, leases by all their fields."""

    hosts: list[str]
    leases: list[LeaseBody]


class ServiceWorker(BaseModel):
    """A worker of a service."""

    host: str
    port: int
    instance: int
    state: LeaseState


class ServiceBody(BaseModel):
    """The workers of one plugin for one organisation."""

    org: str
    plugin: str
    wanted: Annotated[int, Field(description="Workers that somebody runs: all that are not draining.")]
    ready: int
    workers: list[ServiceWorker]


class ServicesBody(OverviewPage):
    """The services of a pool, those with fewest ready workers of those wanted first."""

    services: list[ServiceBody]


async def _keeper(request: Request, pool: str | None) -> tuple[Keeper, FleetIndex]:
    keepers: Keepers = request.app.state.keepers
    keeper = await keepers.of(pool or claims_of(request).allocator.session.pool)
    return keeper, await keeper.ready()


def _head(keeper: Keeper, index: FleetIndex, total: int, offset: int, shown: int) -> dict[str, Any]:
    return {
        "pool": index.rules.name,
        "live": keeper.is_live,
        "at": written_time(keeper.now()),
        "total": total,
        "next": offset + shown if offset + shown < total else None,
    }


def _answer(content: bytes) -> Response:
    """Return a body as it is: what the index states is checked already, and there may be much of it."""
    return Response(content, media_type="application/json", headers={"Cache-Control": "no-store"})


def _json(body: dict[str, Any]) -> str:
    return json.dumps(body, separators=(",", ":"))


def _counts(found: dict[str, int], free: int) -> dict[str, int]:
    return {"free": free, **{name: found.get(name, 0) for name in Counts.model_fields if name != "free"}}


@router.get("/fleet", response_class=Response, responses={**problems(404), 200: {"model": FleetBody}})
async def fleet(
    request: Request, _caller: Reader, limit: HostsLimit = MOST_HOSTS, offset: Offset = 0, pool: PoolName = None
) -> Response:
    """Return a pool's counts and its hosts, worst first, with the counts and the ports of each."""
    keeper, index = await _keeper(request, pool)
    return _answer(keeper.answer(("fleet", limit, offset), lambda: _fleet(keeper, index, limit, offset)))


def _fleet(keeper: Keeper, index: FleetIndex, limit: int, offset: int) -> bytes:
    now = keeper.now()
    totals = index.totals()
    hosts = sorted(
        ((max((one.severity for one in index.problems_of(entry, now)), default=0), entry) for entry in index.shown),
        key=lambda one: (-one[0], one[1].name),
    )
    shown = [_drawn_host(index, entry, int(severity), now) for severity, entry in hosts[offset : offset + limit]]
    body = _head(keeper, index, len(hosts), offset, len(shown)) | {
        "first": index.rules.first,
        "last": index.rules.last,
        "scope": index.rules.scope,
        "version": index.version,
        "size": totals["size"],
        "counts": _counts(totals, totals["free"]),
        "problems": len(index.problems(now)),
    }
    return f'{_json(body)[:-1]},"hosts":[{",".join(shown)}]}}'.encode()


def _drawn_host(index: FleetIndex, entry: HostEntry, severity: int, now: float) -> str:
    """Return a host as JSON, made again when it changed; in fleet scope every host changes with each lease."""
    found = index.problems_of(entry, now)
    if entry.drawn is None or entry.drawn[0] is not found or index.rules.scope == "fleet":
        entry.drawn = found, _json(_host(index, entry, severity, now))
    return entry.drawn[1]


def _host(index: FleetIndex, entry: HostEntry, severity: int, now: float) -> dict[str, Any]:
    known = entry.known
    return {
        "name": entry.name,
        "counts": _counts(entry.counts(), index.free_of(entry)),
        "cordoned": known is not None and known.cordoned,
        "draining": known is not None and known.draining,
        "heard_at": written_time(entry.heard_at) if entry.heard_at else None,
        "severity": severity,
        "problems": len(index.problems_of(entry, now)),
        "ports": index.row(entry),
    }


@router.get("/problems", response_class=Response, responses={**problems(404), 200: {"model": ProblemsBody}})
async def problems_of_pool(
    request: Request, _caller: Reader, limit: RowsLimit = 100, offset: Offset = 0, pool: PoolName = None
) -> Response:
    """Return what is wrong in a pool, worst first, each with since when, whom it concerns and what to do about it."""
    keeper, index = await _keeper(request, pool)

    def make() -> bytes:
        found = index.problems(keeper.now())
        shown = [_problem(one) for one in found[offset : offset + limit]]
        return _json(_head(keeper, index, len(found), offset, len(shown)) | {"problems": shown}).encode()

    return _answer(keeper.answer(("problems", limit, offset), make))


def _problem(one: Problem) -> dict[str, Any]:
    return {
        "check": one.check,
        "severity": int(one.severity),
        "what": one.what,
        "command": one.command,
        "host": one.host,
        "port": one.port,
        "worker": one.worker,
        "since": written_time(one.since) if one.since else None,
    }


@router.get("/search", responses=problems(404))
async def search(
    request: Request,
    _caller: Reader,
    q: Annotated[str, Query(min_length=1, max_length=200, description="What to find: all of its terms.")],
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    pool: PoolName = None,
) -> SearchBody:
    """Search the workers, organisations, plugins, hosts, ports, pids (`pid:4242`), labels and last errors of a pool."""
    keeper, index = await _keeper(request, pool)
    hosts, leases, count = index.search(q.lower().split(), limit)
    head = _head(keeper, index, count, 0, count)
    return SearchBody(**head, hosts=[entry.name for entry in hosts], leases=[LeaseBody.of(lease) for lease in leases])


@router.get("/services", response_class=Response, responses={**problems(404), 200: {"model": ServicesBody}})
async def services(
    request: Request, _caller: Reader, limit: RowsLimit = 100, offset: Offset = 0, pool: PoolName = None
) -> Response:
    """Return the services of a pool: workers wanted, ready, and where; those that lack most come first."""
    keeper, index = await _keeper(request, pool)
    found = []
    for (org, plugin), leases in index.services().items():
        wanted = sum(lease.state is not LeaseState.DRAINING for lease in leases)
        ready = sum(lease.state is LeaseState.READY for lease in leases)
        found.append((ready - wanted, org, plugin, wanted, ready, leases))
    found.sort(key=lambda one: one[:3])
    shown = [
        {
            "org": org,
            "plugin": plugin,
            "wanted": wanted,
            "ready": ready,
            "workers": [
                {"host": one.host, "port": one.port, "instance": one.worker.instance, "state": str(one.state)}
                for one in sorted(leases, key=lambda one: (one.host, one.port))[:MOST_ROWS]
            ],
        }
        for _, org, plugin, wanted, ready, leases in found[offset : offset + limit]
    ]
    return _answer(_json(_head(keeper, index, len(found), offset, len(shown)) | {"services": shown}).encode())
