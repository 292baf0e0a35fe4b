"""The routes of events: the stream of a pool as server-sent events, and the history of one port.

A stream is resumed by the id of the last event that a listener saw (`Last-Event-ID`, or `after`). When Redis no longer
has all that came since, the stream begins with an event `gap`: read the leases again. A listener that takes nothing
for half a minute is disconnected; it comes back with its id and misses nothing.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from pydantic import ValidationError
from sse_starlette.event import ServerSentEvent
from sse_starlette.sse import EventSourceResponse

from allocator.api.access import Reader, Taker
from allocator.api.hub import Hub, as_json, position_of
from allocator.api.models import EventBody
from allocator.api.problems import TOO_MANY, ProblemError
from allocator.api.routes import HostName, PoolName, PortNumber, claims_of, problems
from allocator.model.leases import written_time
from allocator.protocol.keys import event_time, events_key

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
SINCE = "Events-Since"

STREAMS: dict[int | str, dict[str, Any]] = {
    200: {"description": "Server-sent events.", "content": {"text/event-stream": {"schema": {"type": "string"}}}}
}
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
    responses=problems(404) | STREAMS,
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
    check_listeners(hubs)
    hub = await hubs.start(at.session.pool)
    known = last_event_id or after
    return EventStream(hub, _chunks(hub, position_of(known) if known else None))


def check_listeners(hubs: Hubs) -> None:
    """Refuse one more stream when there are as many as there may be.

    Raises:
        ProblemError: When there are.
    """
    if hubs.listeners >= MAX_STREAMS:
        raise ProblemError(TOO_MANY, f"{MAX_STREAMS} listen already; try again later", headers={"Retry-After": "30"})


class EventStream(EventSourceResponse):
    """A response that goes on as long as its listener listens and takes what is sent.

    Args:
        hub: The events of the pool that it is about, where its listener is counted.
        chunks: What is sent.
    """

    def __init__(self, hub: Hub, chunks: AsyncIterator[bytes]) -> None:
        self._hub = hub
        super().__init__(
            chunks,
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
            ping=int(PING_S),
            ping_message_factory=lambda: ServerSentEvent(comment="ping"),
            sep="\n",
            send_timeout=SEND_S,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send events until the listener leaves, takes nothing any more, or the server ends."""
        with self._hub.listening(), contextlib.suppress(TimeoutError):
            await super().__call__(scope, receive, send)


async def _chunks(hub: Hub, known: Position | None) -> AsyncIterator[bytes]:
    """Yield what a listener is sent; many events at once are one piece, for each piece costs a turn of the loop."""
    position = hub.position if known is None else known
    yield b"retry: 1000\n: portlease\n\n"
    if known is not None and not hub.is_away and await hub.has_lost(position):
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
        else:
            await hub.wait(PING_S)


@router.get(
    "/leases/{host}/{port}/events",
    responses=problems(404) | {200: {"headers": {SINCE: {"schema": {"type": "string", "format": "date-time"}}}}},
)
async def history(
    request: Request,
    response: Response,
    _caller: Reader,
    host: HostName,
    port: PortNumber,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
    pool: PoolName = None,
) -> list[EventBody]:
    """Return the last events of one port of a host, oldest first.

    The header `Events-Since` is the time from which on all of them are in the answer: the pool's stream goes no further
    back, or there were more than `limit`.
    """
    at = claims_of(request).pool(pool)
    stream_key, before = events_key(at.session.pool), "+"
    found: list[EventBody] = []
    for _ in range(HISTORY_EVENTS // HISTORY_PAGE):
        rows = await at.store.newest_events(stream_key, HISTORY_PAGE, before_id=before)
        for identifier, fields in reversed(rows):
            if fields.get("host") == host and fields.get("port") == str(port):
                with contextlib.suppress(ValidationError):  # another program's entry
                    found.append(EventBody.model_validate(as_json(identifier, fields)))
        if rows:
            before = f"({rows[0][0]}"
            response.headers[SINCE] = written_time(event_time(rows[0][0]))
        if len(rows) < HISTORY_PAGE or len(found) >= limit:
            break
    if len(found) > limit:
        response.headers[SINCE] = found[limit - 1].at
    return found[:limit][::-1]
