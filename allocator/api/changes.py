"""The overview of a pool as a stream: all of it first, then what changed, for pages that stay open.

The rules of this file: what changed is found and written once, however many follow it, a few times a second while
anything does, and not at all while nobody follows. A follower has a number, not a queue: one that falls behind what is
kept gets all of it again, as one does that comes back.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from fastapi import APIRouter, Request, Response

from allocator.api.access import Taker
from allocator.api.events import STREAMS, EventStream, check_listeners
from allocator.api.overview import (
    drawn_host,
    encoded,
    fleet_head,
    keeper_of,
    page_head,
    problem_row,
)
from allocator.api.routes import PoolName, problems

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from allocator.api.keeper import Keeper
    from allocator.model.problems import Problem

router = APIRouter(prefix="/v1", tags=["fleet"])

PACE_OF_ONE_S = 0.003
"""Between two looks at what changed, for each follower: a thousand are sent changes every three seconds, for a
twentieth of a core."""
EVERY_S = 5.0
"""How long nothing is sent at most: whoever hears nothing for longer has lost the server."""
MAX_FRAMES = 20
SLICE = 10
"""Followers woken in one turn of the event loop, so that requests do not wait behind all of them."""
PROBLEMS = 50


class Changes:
    """What changes in the overview of one pool.

    Args:
        keeper: Keeps the index of the pool.
    """

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._rows: dict[str, str] = {}
        self._head = ""
        self._shown: list[Problem] = []
        self._problems = b""
        self._number = 0
        self._frames: deque[bytes] = deque(maxlen=MAX_FRAMES)
        self._state: tuple[object, ...] = ()
        self._made_at = 0.0
        self._followers = 0
        self._waiting: set[asyncio.Future[None]] = set()
        self._task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Changes of {self._keeper!r}, {self._followers} followers>"

    async def follow(self) -> AsyncIterator[bytes]:
        """Yield the whole overview, then its changes, until the server ends or the pool's keeper is closed."""
        self._followers += 1
        try:
            if self._task is None or self._task.done():
                self._make()
                self._task = asyncio.get_running_loop().create_task(self._look(), name="allocator-changes")
            number = self._number
            yield self._whole()
            while not self.is_over:
                await self._wait()
                missed, number = self._number - number, self._number
                if missed > len(self._frames):
                    yield self._whole()
                elif missed:
                    yield b"".join(list(self._frames)[-missed:])
        finally:
            self._followers -= 1

    @property
    def is_over(self) -> bool:
        """Whether the pool is no longer followed."""
        return self._keeper.closed or self._keeper.hub.closed

    async def _wait(self) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        try:
            await future
        finally:
            self._waiting.discard(future)

    async def _look(self) -> None:
        loop = asyncio.get_running_loop()
        while self._followers and not self.is_over:
            await self._keeper.news(EVERY_S)
            if self._seen() != self._state or loop.time() - self._made_at >= EVERY_S:
                self._frames.append(self._make())
                self._number += 1
                await self._wake()
                await asyncio.sleep(PACE_OF_ONE_S * self._followers)
        await self._wake()

    async def _wake(self) -> None:
        waiting, self._waiting = list(self._waiting), set()
        for at, future in enumerate(waiting):
            if not future.done():
                future.set_result(None)
            if at % SLICE == SLICE - 1:
                await asyncio.sleep(0)

    def _seen(self) -> tuple[object, ...]:
        """Return what tells whether anything changed, besides what only time changes."""
        index = self._keeper.index
        return index, index and index.version, self._keeper.is_live

    def _make(self) -> bytes:
        """Return what changed since this was called last, as events."""
        index, now, before = self._keeper.index, self._keeper.now(), self._rows
        assert index is not None  # noqa: S101  # it has been read when somebody follows
        found, count = index.problems(now, PROBLEMS)  # first, for it finds what only time changed
        self._state, self._made_at = self._seen(), asyncio.get_running_loop().time()
        self._rows = {entry.name: drawn_host(index, entry, now) for entry in index.shown}
        changed = [row for name, row in self._rows.items() if before.get(name) != row]
        gone = [name for name in before if name not in self._rows]
        total = len(self._rows)
        self._head = encoded(page_head(self._keeper, index, total, 0, total) | fleet_head(index, count))[:-1]
        made = self._fleet_event(changed, gone, is_whole=False)
        if found != self._shown or not self._problems:
            self._shown = found
            body = page_head(self._keeper, index, count, 0, len(found)) | {"problems": list(map(problem_row, found))}
            self._problems = f"event: problems\ndata: {encoded(body)}\n\n".encode()
            made += self._problems
        return made

    def _whole(self) -> bytes:
        return self._fleet_event(list(self._rows.values()), [], is_whole=True) + self._problems

    def _fleet_event(self, rows: list[str], gone: list[str], *, is_whole: bool) -> bytes:
        rest = encoded({"whole": is_whole, "gone": gone})[1:-1]
        return f'event: fleet\ndata: {self._head},{rest},"hosts":[{",".join(rows)}]}}\n\n'.encode()


class Followed:
    """The changes of the pools that somebody follows."""

    def __init__(self) -> None:
        self._changes: dict[str, Changes] = {}

    def of(self, pool: str, keeper: Keeper) -> Changes:
        """Return the changes of a pool, by the keeper that it has now."""
        self._changes = {name: one for name, one in self._changes.items() if not one.is_over}
        return self._changes.setdefault(pool, Changes(keeper))


@router.get(
    "/fleet/changes",
    response_class=Response,
    responses=problems(404) | STREAMS,
)
async def changes(request: Request, _caller: Taker, pool: PoolName = None) -> Response:
    """Stream a pool's overview: events `fleet` with all hosts, then with those that changed, and events `problems`.

    Their data are what `/v1/fleet` and `/v1/problems?limit=50` answer. An event `fleet` also has `whole` (whether its
    hosts are all that there are) and `gone` (the hosts that left); one is sent every five seconds at least.
    """
    check_listeners(request.app.state.hubs)
    keeper, index = await keeper_of(request, pool)
    followed: Followed = request.app.state.followed
    return EventStream(keeper.hub, followed.of(index.rules.name, keeper).follow())
