"""The routes of events: the stream of a pool as server-sent events, and the history of one port.

A stream is resumed by the id of the last event that a listener saw (`Last-Event-ID`, or `after`). When Redis no longer
has all that came since, the stream begins with an event `gap`: read the leases again. A listener that takes nothing
for half a minute is let go; it comes back with its id and misses nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Header, Query, Request, Response
from pydantic import ValidationError
from starlette.responses import Response as PlainResponse

from allocator.api.access import Reader, Taker
from allocator.api.hub import Hub, as_json, position_of
from allocator.api.models import EventBody
from allocator.api.problems import TOO_MANY, ProblemError
from allocator.api.routes import HostName, PoolName, PortNumber, claims_of, problems
from allocator.protocol.keys import events_key

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from starlette.types import Receive, Scope, Send

    from allocator.api.hub import PoolEvent, Position
    from allocator.store.aio import AsyncStore

router = APIRouter(prefix="/v1", tags=["events"])

EVENT_ID = r"^[0-9]{1,19}-[0-9]{1,19}$"
PING_S = 15.0
SEND_S = 30.0
MAX_STREAMS = 5_000
HISTORY_PAGE = 1_000
HISTORY_EVENTS = 20_000
"""How far back a history looks: the stream is capped at about 10,000."""

EventId = Annotated[str | None, Query(pattern=EVENT_ID, description="The id of the last event that is known.")]
LastEventId = Annotated[str | None, Header(alias="Last-Event-ID", pattern=EVENT_ID)]


class Hubs:
    """The hubs of the pools that somebody listens to.

    Args:
        store: The connection to Redis.
        count: Is called with the pool and the type of each event that is read.
    """

    def __init__(self, store: AsyncStore, count: Callable[[str, str], None]) -> None:
        self._store = store
        self._count = count
        self._hubs: dict[str, Hub] = {}

    async def start(self, pool: str) -> Hub:
        """Return the hub of a pool, reading."""
        if pool not in self._hubs:
            self._hubs[pool] = Hub(self._store, pool, lambda fields: self._count(pool, fields.get("type", "other")))
        await self._hubs[pool].start()
        return self._hubs[pool]

    @property
    def listeners(self) -> int:
        """How many listen to all of them."""
        return sum(hub.listeners for hub in self._hubs.values())

    async def close(self) -> None:
        """Let every listener go."""
        for hub in self._hubs.values():
            await hub.close()


@router.get(
    "/events",
    response_class=Response,
    responses=problems(404)
    | {200: {"description": "Server-sent events.", "content": {"text/event-stream": {"schema": {"type": "string"}}}}},
)
async def stream(
    request: Request,
    _caller: Taker,
    after: EventId = None,
    last_event_id: LastEventId = None,
    pool: PoolName = None,
) -> Response:
    """Stream what happens in a pool, from now on or from behind an event that is known already."""
    claims = claims_of(request)
    at = claims.pool(pool)
    await claims.rules(at)  # a pool that nobody defined is a problem, and no endless silence
    hubs: Hubs = request.app.state.hubs
    if hubs.listeners >= MAX_STREAMS:
        raise ProblemError(TOO_MANY, f"{MAX_STREAMS} listen already; try again later", headers={"Retry-After": "30"})
    hub = await hubs.start(at.session.pool)
    known = last_event_id or after
    return EventStream(hub, position_of(known) if known else None)


class EventStream(PlainResponse):
    """A response that goes on as long as its listener listens.

    Args:
        hub: Where the events come from.
        known: The position of the last event that the listener knows; None: from now on.
    """

    media_type = "text/event-stream"

    def __init__(self, hub: Hub, known: Position | None) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._hub = hub
        self._known = known

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        """Send events until the listener leaves, takes nothing any more, or the server ends."""
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        sending = asyncio.create_task(self._send_all(send))
        leaving = asyncio.create_task(_left(receive))
        with self._hub.listening():
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
            for task in (sending, leaving):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, TimeoutError, OSError):
                    await task

    async def _send_all(self, send: Send) -> None:
        async for chunk in self._chunks():
            async with asyncio.timeout(SEND_S):
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _chunks(self) -> AsyncIterator[bytes]:
        hub = self._hub
        position = hub.position if self._known is None else self._known
        yield b"retry: 1000\n: portlease\n\n"
        if self._known is not None and not hub.is_away and await hub.has_lost(position):
            yield b"event: gap\ndata: {}\n\n"
        away = False
        while not hub.closed:
            if hub.is_away != away:
                away = hub.is_away
                yield b"event: away\ndata: {}\n\n" if away else b"event: back\ndata: {}\n\n"
            events: list[PoolEvent] = [] if away else await hub.after(position)
            if events:
                position = events[-1].position
                yield b"".join(event.frame for event in events)
            elif not await hub.wait(PING_S):
                yield b": ping\n\n"


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


@router.get("/leases/{host}/{port}/events", responses=problems(404))
async def history(
    request: Request,
    _caller: Reader,
    host: HostName,
    port: PortNumber,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
    pool: PoolName = None,
) -> list[EventBody]:
    """Return the last events of one port of a host, oldest first, as far back as the pool's stream reaches."""
    at = claims_of(request).pool(pool)
    stream_key, before = events_key(at.session.pool), "+"
    found: list[EventBody] = []
    for _ in range(HISTORY_EVENTS // HISTORY_PAGE):
        rows = await at.store.newest_events(stream_key, HISTORY_PAGE, before_id=before)
        for identifier, fields in reversed(rows):
            if fields.get("host") == host and fields.get("port") == str(port):
                with contextlib.suppress(ValidationError):  # another program's entry
                    found.append(EventBody.model_validate(as_json(identifier, fields)))
        if len(rows) < HISTORY_PAGE or len(found) >= limit:
            break
        before = f"({rows[0][0]}"
    return found[:limit][::-1]
