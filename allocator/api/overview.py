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
    from allocator.api.cells import HostEntry, Judged
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


async def keeper_of(request: Request, pool: str | None) -> tuple[Keeper, FleetIndex]:
    """Return the keeper of a pool, and its index when it has been read."""
    keepers: Keepers = request.app.state.keepers
    keeper = await keepers.of(pool or claims_of(request).allocator.session.pool)
    return keeper, await keeper.ready()


def page_head(keeper: Keeper, index: FleetIndex, total: int, offset: int, shown: int) -> dict[str, Any]:
    """Return what all pages of an overview state of themselves."""
    return {
        "pool": index.rules.name,
        "live": keeper.is_live,
        "at": written_time(keeper.now()),
        "total": total,
        "next": offset + shown if offset + shown < total else None,
    }


def _answer(content: bytes) -> Response:
    """Return a body without checking it again: the index has checked it, and it can be large."""
    return Response(content, media_type="application/json", headers={"Cache-Control": "no-store"})


def encoded(body: dict[str, Any]) -> str:
    """Return a body as it is sent."""
    return json.dumps(body, separators=(",", ":"))


def _counts(found: dict[str, int], free: int) -> dict[str, int]:
    return {"free": free, **{name: found.get(name, 0) for name in Counts.model_fields if name != "free"}}


@router.get("/fleet", response_class=Response, responses={**problems(404), 200: {"model": FleetBody}})
async def fleet(
    request: Request, _caller: Reader, limit: HostsLimit = MOST_HOSTS, offset: Offset = 0, pool: PoolName = None
) -> Response:
    """Return a pool's counts and its hosts, worst first, with the counts and the ports of each."""
    keeper, index = await keeper_of(request, pool)
    return _answer(keeper.answer(("fleet", limit, offset), lambda: _fleet(keeper, index, limit, offset)))


def _fleet(keeper: Keeper, index: FleetIndex, limit: int, offset: int) -> bytes:
    now = keeper.now()
    hosts = sorted(index.shown, key=lambda entry: (-index.judged(entry, now).severity, entry.name))
    shown = [drawn_host(index, entry, now) for entry in hosts[offset : offset + limit]]
    body = page_head(keeper, index, len(hosts), offset, len(shown)) | fleet_head(index, index.problems(now, 0)[1])
    return f'{encoded(body)[:-1]},"hosts":[{",".join(shown)}]}}'.encode()


def fleet_head(index: FleetIndex, problems_count: int) -> dict[str, Any]:
    """Return the part of a pool's overview that is about the whole pool, with the number of problems."""
    totals = index.totals()
    return {
        "first": index.rules.first,
        "last": index.rules.last,
        "scope": index.rules.scope,
        "version": index.version,
        "size": totals["size"],
        "counts": _counts(totals, totals["free"]),
        "problems": problems_count,
    }


def drawn_host(index: FleetIndex, entry: HostEntry, now: float) -> str:
    """Return a host as JSON, made again when it changed; in fleet scope every host changes with each lease."""
    judged = index.judged(entry, now)
    if entry.drawn is None or entry.drawn[0] is not judged or index.rules.scope == "fleet":
        entry.drawn = judged, encoded(_host(index, entry, judged))
    return entry.drawn[1]


def _host(index: FleetIndex, entry: HostEntry, judged: Judged) -> dict[str, Any]:
    known = entry.known
    return {
        "name": entry.name,
        "counts": _counts(entry.counts(), index.free_of(entry)),
        "cordoned": known is not None and known.cordoned,
        "draining": known is not None and known.draining,
        "heard_at": written_time(entry.heard_at) if entry.heard_at else None,
        "severity": judged.severity,
        "problems": len(judged.problems),
        "ports": index.row(entry),
    }


@router.get("/problems", response_class=Response, responses={**problems(404), 200: {"model": ProblemsBody}})
async def problems_of_pool(
    request: Request, _caller: Reader, limit: RowsLimit = 100, offset: Offset = 0, pool: PoolName = None
) -> Response:
    """Return what is wrong in a pool, worst first, each with since when, whom it concerns and what to do about it."""
    keeper, index = await keeper_of(request, pool)

    return _answer(keeper.answer(("problems", limit, offset), lambda: _problems(keeper, index, limit, offset)))


def _problems(keeper: Keeper, index: FleetIndex, limit: int, offset: int) -> bytes:
    found, total = index.problems(keeper.now(), offset + limit)
    shown = [problem_row(one) for one in found[offset:]]
    return encoded(page_head(keeper, index, total, offset, len(shown)) | {"problems": shown}).encode()


def problem_row(one: Problem) -> dict[str, Any]:
    """Return a problem as it is sent."""
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
    keeper, index = await keeper_of(request, pool)
    hosts, leases, count = index.search(q.lower().split(), limit)
    head = page_head(keeper, index, count, 0, count)
    return SearchBody(**head, hosts=[entry.name for entry in hosts], leases=[LeaseBody.of(lease) for lease in leases])


@router.get("/services", response_class=Response, responses={**problems(404), 200: {"model": ServicesBody}})
async def services(
    request: Request, _caller: Reader, limit: RowsLimit = 100, offset: Offset = 0, pool: PoolName = None
) -> Response:
    """Return the services of a pool: workers wanted, ready, and where; those that lack most come first."""
    keeper, index = await keeper_of(request, pool)
    return _answer(keeper.answer(("services", limit, offset), lambda: _services(keeper, index, limit, offset)))


def _services(keeper: Keeper, index: FleetIndex, limit: int, offset: int) -> bytes:
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
    return encoded(page_head(keeper, index, len(found), offset, len(shown)) | {"services": shown}).encode()
