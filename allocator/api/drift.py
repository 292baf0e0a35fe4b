"""Where the table of workers and the leases differ: what `reconcile --dry-run` shows, for the page.

A look reads everything on both sides, so it is made in a thread, at most once in `MAX_AGE_S`, and only of
the server's own pool. A server without a database has nothing to compare and reports it.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from fastapi import APIRouter, Request
from pydantic import BaseModel

from allocator.api.access import ReaderOfOwn
from allocator.api.background import in_thread
from allocator.api.routes import problems
from allocator.model.leases import written_time

if TYPE_CHECKING:
    from allocator.client.blocking import PortAllocator
    from allocator.database.connection import Database
    from allocator.model.tables import TableNames

router = APIRouter(prefix="/v1", tags=["fleet"])

MAX_AGE_S = 10.0
MOST = 500
"""Differences in one answer: more is an outage, and no list that anybody reads."""


class DifferenceBody(BaseModel):
    """One difference; `action` is what a reconciler does about it."""

    kind: str
    worker: str | None
    host: str | None
    port: int | None
    detail: str
    action: str


class DriftBody(BaseModel):
    """What was found at a moment; `compared` is false where the server has no database."""

    compared: bool
    at: str | None = None
    count: int = 0
    differences: list[DifferenceBody] = []


class DriftView:
    """Looks at the differences of one pool.

    Args:
        allocator: The pool's leases; closed at the end.
        database: Where the rows are; closed at the end.
        names: What the table is called.
        refreshes: Whether a reconciler of it follows the renewals; see `Reconciler`.
    """

    def __init__(
        self, allocator: PortAllocator, database: Database, names: TableNames, *, refreshes: bool = True
    ) -> None:
        self._allocator, self._database, self._names, self._refreshes = allocator, database, names, refreshes
        self._looking = asyncio.Lock()
        self._known: tuple[float, DriftBody] | None = None

    def __repr__(self) -> str:
        return f"<DriftView of {self._allocator!r} and {self._database!r}>"

    async def now(self) -> DriftBody:
        """Return the differences, as they were at most `MAX_AGE_S` ago."""
        async with self._looking:
            if self._known is None or time.monotonic() - self._known[0] > MAX_AGE_S:
                self._known = time.monotonic(), await in_thread(self._look)
            return self._known[1]

    def _look(self) -> DriftBody:
        from allocator.database.reconciler import differences

        found = DriftBody(compared=True, at=written_time(time.time()))
        for one in differences(self._allocator, self._database, self._names, refreshes=self._refreshes):
            found.count += 1
            if found.count <= MOST:
                found.differences.append(DifferenceBody.model_validate(one.as_json()))
        return found

    def close(self) -> None:
        """Close both connections."""
        self._allocator.close()
        self._database.close()


@router.get("/drift", responses=problems())
async def drift(request: Request, _caller: ReaderOfOwn) -> DriftBody:
    """Return where the table of workers differs from the leases of the server's pool, at most 500 differences."""
    view: DriftView | None = request.app.state.drift
    return await view.now() if view else DriftBody(compared=False)
