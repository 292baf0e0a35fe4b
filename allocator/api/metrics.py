"""What is counted and measured, for Prometheus. Names and units are a promise: `docs/reference/metrics.md` lists them.

Three sources, and each metric has one: what this process did (claims, renewals, requests, scripts), the pool's event
stream (transitions in the whole fleet, whoever made them), and Redis at the moment of a scrape (how full the pool is).
Labels are pools, hosts, plugins, outcomes and routes: never organisations or ports, of which there are too many, and
never anything of a request that a caller chose freely.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING

from fastapi import APIRouter, Request, Response
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import Metric

from allocator.agent.family import ports_of_strangers
from allocator.api.access import ReaderOfAny
from allocator.api.credentials import Caller
from allocator.api.problems import kind_of
from allocator.api.routes import claims_of, problems
from allocator.model.errors import AllocatorError
from allocator.model.pools import FLEET_NAMESPACE
from allocator.model.states import EVENT_TYPES, LIVE_STATES
from allocator.operations import listing
from allocator.protocol.keys import queue_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from allocator.api.claims import Claims

router = APIRouter(tags=["health"])

LATENCY_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
SCRIPT_BUCKETS = (0.000_1, 0.000_2, 0.000_5, 0.001, 0.002, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0)


class Metrics:
    """The metrics of one process.

    Attributes:
        registry: Where they are registered; nothing of the interpreter or the process besides.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        here = self.registry
        self.claims = Counter("allocator_claims", "Claims through this server.", ["pool", "outcome"], registry=here)
        self.claim_seconds = Histogram(
            "allocator_claim_seconds",
            "Time of a claim, waiting included.",
            ["pool"],
            buckets=LATENCY_BUCKETS,
            registry=here,
        )
        self.renewals = Counter(
            "allocator_renewals", "Renewals through this server.", ["pool", "outcome"], registry=here
        )
        self.events = Counter(
            "allocator_events", "Transitions in the whole pool, as read here.", ["pool", "type"], registry=here
        )
        self.requests = Counter("allocator_http_requests", "Requests.", ["method", "route", "status"], registry=here)
        self.request_seconds = Histogram(
            "allocator_http_request_seconds",
            "Time of a request.",
            ["method", "route"],
            buckets=LATENCY_BUCKETS,
            registry=here,
        )
        self.streams = Gauge("allocator_event_streams", "Listeners to server-sent events.", registry=here)
        self.script_seconds = Histogram(
            "allocator_script_seconds",
            "Time of one script, the way to Redis and back included.",
            ["script"],
            buckets=SCRIPT_BUCKETS,
            registry=here,
        )
        self.script_errors = Counter(
            "allocator_script_errors", "Scripts that gave no answer.", ["script"], registry=here
        )
        self.up = Gauge("allocator_redis_up", "Whether Redis answered this scrape.", registry=here)
        self.ports = Gauge(
            "allocator_pool_ports", "Ports that a host of the pool has.", ["pool", "host"], registry=here
        )
        self.leased = Gauge("allocator_leases", "Live leases.", ["pool", "host", "state"], registry=here)
        self.free = Gauge("allocator_pool_free_ports", "Ports that can be claimed.", ["pool", "host"], registry=here)
        self.resting = Gauge(
            "allocator_pool_resting_ports", "Ports that rest.", ["pool", "host", "reason"], registry=here
        )
        self.strange = Gauge(
            "allocator_pool_stranger_ports",
            "Ports of this server's host that a program without a lease listens on, alone or beside the worker.",
            ["pool", "host"],
            registry=here,
        )
        self.restarts = Gauge(
            "allocator_worker_restarts", "Restarts of the live workers.", ["pool", "plugin"], registry=here
        )
        self.waiters = Gauge(
            "allocator_waiters", "Claims that wait in the queue for a port.", ["pool", "host"], registry=here
        )
        self.in_progress = Gauge(
            "allocator_claims_in_progress", "Claims that are made or wait in this server.", ["pool"], registry=here
        )

    def count_event(self, pool: str, kind: str) -> None:
        """Count one event of a pool."""
        # Another type is counted as `other`, so that a stream cannot make new series.
        self.events.labels(pool, kind if kind in EVENT_TYPES else "other").inc()

    def on_script(self, script: str, seconds: float, *, answered: bool) -> None:
        """Take the time of one script."""
        self.script_seconds.labels(script).observe(seconds)
        if not answered:
            self.script_errors.labels(script).inc()

    async def look(self, claims: Claims) -> None:
        """Set what is read from Redis, for the pools that this server serves."""
        for gauge in (self.ports, self.leased, self.free, self.resting, self.strange, self.restarts, self.waiters):
            gauge.clear()
        try:
            for name in await claims.allocator.store.pool_names():
                await self._look_at_pool(claims, name)
        except AllocatorError:
            self.up.set(0)
            raise
        self.up.set(1)

    async def _look_at_pool(self, claims: Claims, name: str) -> None:
        at = claims.pool(name)
        rules = await claims.rules(at)
        namespaces = await at.run(listing.namespaces(name))
        for host in namespaces:
            for state in sorted(LIVE_STATES) if host != FLEET_NAMESPACE else ():
                self.leased.labels(name, host, state).set(0)
        for namespace in [FLEET_NAMESPACE] if rules.scope == "fleet" else namespaces:
            views = await at.run(listing.ports(name, namespace, quarantine=True))
            self.ports.labels(name, namespace).set(rules.size)
            self.waiters.labels(name, namespace).set(await at.store.count_members(queue_key(name, namespace)))
            self.free.labels(name, namespace).set(max(0, rules.size - len(views)))
            for reason in ("quarantined", "cooling"):
                self.resting.labels(name, namespace, reason).set(0)
            if namespace in {claims.host, FLEET_NAMESPACE}:
                leases = {view.port: view.lease for view in views if view.lease and view.lease.host == claims.host}
                strange = await asyncio.to_thread(ports_of_strangers, rules.first, rules.last, leases)
                self.strange.labels(name, claims.host).set(len(strange))
            for view in views:
                if view.lease:
                    self.leased.labels(name, view.lease.host, view.lease.state).inc()
                    self.restarts.labels(name, view.lease.plugin).inc(view.lease.restarts)
                else:
                    self.resting.labels(name, namespace, view.why).inc()


@contextlib.contextmanager
def _shown(count: Callable[[str], None]) -> Iterator[None]:
    """Tell what the block came to: `ok`, the kind of its AllocatorError, or `unexpected`."""
    outcome = "unexpected"
    try:
        yield
        outcome = "ok"
    except AllocatorError as error:
        outcome = kind_of(error).name
        raise
    finally:
        count(outcome)


@contextlib.contextmanager
def watched_claim(request: Request, pool: str | None) -> Iterator[None]:
    """Count a claim and take its time, for the metrics and for the page's samples."""
    found: Metrics = request.app.state.metrics
    label, began = claims_of(request).known_pool(pool), time.perf_counter()

    def count(outcome: str) -> None:
        seconds = time.perf_counter() - began
        found.claims.labels(label, outcome).inc()
        found.claim_seconds.labels(label).observe(seconds)
        request.app.state.samples.on_claim(label, seconds, granted=outcome == "ok")

    with _shown(count), found.in_progress.labels(label).track_inprogress():
        yield


@contextlib.contextmanager
def watched_renewal(request: Request, pool: str | None) -> Iterator[None]:
    """Count a renewal by what it came to."""
    found: Metrics = request.app.state.metrics
    with _shown(lambda outcome: found.renewals.labels(claims_of(request).known_pool(pool), outcome).inc()):
        yield


class RequestMetrics:
    """Counts requests by the route's pattern, never by the path that was asked for. Pure ASGI."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on and count it when its answer has begun."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                method = scope["method"] if scope["method"] in _METHODS else "other"
                route = getattr(scope.get("route"), "path", "none")
                self._metrics.requests.labels(method, route, str(message["status"])).inc()
                self._metrics.request_seconds.labels(method, route).observe(time.perf_counter() - began)
            await send(message)

        await self._app(scope, receive, watched)


class _OfPools(CollectorRegistry):
    """The metrics that a credential for some pools may see: those of its pools, and those of no pool."""

    def __init__(self, registry: CollectorRegistry, caller: Caller) -> None:
        super().__init__()
        self._all, self._caller = registry, caller

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics without the samples of other pools."""
        for metric in self._all.collect():
            shown = Metric(metric.name, metric.documentation, metric.type)
            shown.samples = [one for one in metric.samples if self._is_shown(one.labels.get("pool"))]
            yield shown

    def _is_shown(self, pool: str | None) -> bool:
        return pool is None or self._caller.may_use(pool)


_METHODS = {"GET", "HEAD", "POST", "PATCH", "DELETE", "PUT", "OPTIONS"}


@router.get(
    "/metrics",
    response_class=Response,
    responses=problems()
    | {200: {"description": "Metrics.", "content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(request: Request, caller: ReaderOfAny) -> Response:
    """Return the metrics in the text format of Prometheus; `allocator_redis_up` is 0 while Redis is away."""
    found: Metrics = request.app.state.metrics
    with contextlib.suppress(AllocatorError):  # what was counted is shown all the same, and allocator_redis_up is 0
        await found.look(claims_of(request))
    found.streams.set(request.app.state.hubs.listeners)
    shown = found.registry if caller.pools is None else _OfPools(found.registry, caller)
    return Response(generate_latest(shown), media_type=CONTENT_TYPE_LATEST)
