"""The application: the routes over one `AsyncPortAllocator`, mounted by `allocator serve` and by `allocator agent`.

It opens no socket and reads no setting. Whoever serves it decides who may reach it: `serve` asks for bearer tokens
beyond loopback, the agent relies on the rights of its Unix socket.
"""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI

from allocator.api import (
    changes,
    discovery,
    drift,
    events,
    fleet,
    health,
    leases,
    metrics,
    overview,
    pages,
    problems,
    samples,
)
from allocator.api.access import Access
from allocator.api.background import WITHIN_S, end_tasks, in_thread
from allocator.api.claims import Claims
from allocator.api.heads import HeadMiddleware
from allocator.api.keeper import Keepers
from allocator.api.limits import LimitMiddleware, Limits
from allocator.api.routes import add_problem_schema

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from allocator.api.claims import Custody
    from allocator.client.aio import AsyncPortAllocator

DESCRIPTION = """Port leases over HTTP. Errors are RFC 9457 problem details with a stable `type`. A lease's token
comes and goes in the header `Allocator-Token`; it appears in no path, body, listing or log."""


def create_app(
    allocator: AsyncPortAllocator,
    *,
    access: Access | None = None,
    limits: Limits | None = None,
    custody: Custody | None = None,
    drift_view: drift.DriftView | None = None,
) -> FastAPI:
    """Return the API over an allocator, which the application closes at its end.

    Args:
        allocator: The connection to Redis, the pool that is meant where none is named, and which host is the own one.
        access: Who may call; None for whoever reaches the socket.
        limits: What a caller may ask for; None for the defaults.
        custody: Looks after the leases of this host that are bound to a process: the agent; None when nobody does.
        drift_view: Compares the leases with a database; None without one. It is closed at the end.
    """
    claims = Claims(allocator, custody)
    counted = metrics.Metrics()
    hubs = events.Hubs(allocator.store, counted.count_event)
    keepers = Keepers(claims, hubs)
    sampled = samples.Samples(keepers, allocator.session.pool)
    allocator.store.on_call = counted.on_script

    @asynccontextmanager
    async def lifespan(_application: FastAPI) -> AsyncIterator[None]:
        tasks = [
            asyncio.create_task(hubs.start(allocator.session.pool), name="allocator-hub"),
            asyncio.create_task(sampled.run(), name="allocator-samples"),
        ]
        try:
            yield
        finally:
            await end_tasks(tasks)
            await keepers.close()
            await hubs.close()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(WITHIN_S):
                    await allocator.close()
                    if drift_view is not None:
                        await in_thread(drift_view.close)

    application = FastAPI(
        title="portlease",
        version=_version(),
        description=DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    application.state.claims = claims
    access = access or Access()
    application.state.access = access
    application.state.metrics = counted
    application.state.hubs = hubs
    application.state.keepers = keepers
    application.state.samples = sampled
    application.state.followed = changes.Followed()
    application.state.drift = drift_view
    application.state.targets = discovery.Targets()
    application.add_middleware(HeadMiddleware)
    application.add_middleware(LimitMiddleware, limits=limits or Limits(), access=access)
    application.add_middleware(metrics.RequestMetrics, metrics=counted)
    for module in (leases, fleet, overview, changes, drift, events, discovery, samples, health, metrics, pages):
        application.include_router(module.router)
    problems.install(application)
    _document(application)
    return application


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("portlease")
    except PackageNotFoundError:
        return "0"


def _document(application: FastAPI) -> None:
    """Make `/openapi.json` state what the routes answer, the shape of a problem included."""
    make = application.openapi

    def document() -> dict[str, Any]:
        if application.openapi_schema is None:
            made = make()
            add_problem_schema(made)
            for path in made["paths"].values():
                for operation in path.values():
                    if "422" in operation["responses"] and "HTTPValidationError" in str(operation["responses"]["422"]):
                        del operation["responses"]["422"]
            for unused in ("HTTPValidationError", "ValidationError"):
                made["components"]["schemas"].pop(unused, None)
            application.openapi_schema = made
        return application.openapi_schema

    application.openapi = document  # type: ignore[method-assign]  # FastAPI's documented way
