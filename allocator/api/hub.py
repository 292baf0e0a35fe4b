"""One reader of a pool's event stream for all who listen to it, and a bounded memory that they read from.

The rules of this file: a listener has a position, not a queue. One that falls behind the memory reads its page from
Redis by itself, so that a slow one costs nobody else; whoever is woken is woken in slices, so that a thousand listeners
do not keep a claim waiting. Events hold no tokens. May not live here: HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import re
from collections import deque
from typing import TYPE_CHECKING

from allocator.api.background import end_tasks
from allocator.model.errors import AllocatorError, InvalidInputError
from allocator.model.leases import written_time
from allocator.model.names import WorkerId
from allocator.protocol.keys import event_time, events_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from allocator.store.aio import AsyncStore

MAX_EVENTS = 4_096
"""Events in memory: some ten seconds of the busiest fleet; a listener that is further behind reads from Redis."""
PAGE = 500
BLOCK_S = 2.0
PACE_S = 0.001
LONGEST_PACE_S = 1.0
"""One round of waking takes this long for each listener, so that many are sent events in batches: one hears of an event
within a millisecond, a thousand within a second."""
SLICE = 10
"""Listeners woken in one turn of the event loop: about 1 ms of it. The slices of a round are spread over its time."""
RETRY_S = 0.5
READ_PACE_S = 0.25
"""Seconds between two readings while events flow: a hundred events a second are read in four calls."""

_WHOLE = re.compile(r"[0-9]{1,20}", re.ASCII)
_TYPE = re.compile(r"[a-z_]{1,40}", re.ASCII)
"""Characters allowed in a field of a frame; anything else from the stream is sent in the JSON only."""

log = logging.getLogger("allocator.api")

Position = tuple[int, int]
Fields = dict[str, str]


class PoolEvent:
    """One event as it is sent.

    Args:
        identifier: Its id.
        fields: Its fields, as the script wrote them.

    Attributes:
        position: Its id as two numbers, in order of time.
    """

    __slots__ = ("_frame", "_identifier", "fields", "position")

    def __init__(self, identifier: str, fields: Fields) -> None:
        self.position = position_of(identifier)
        self.fields = fields
        self._identifier = identifier
        self._frame: bytes | None = None

    def __repr__(self) -> str:
        return f"<PoolEvent {self._identifier} {self.fields.get('type', '')}>"

    @property
    def frame(self) -> bytes:
        """The frame of server-sent events that it makes, made when somebody listens, once for all."""
        if self._frame is None:
            body = json.dumps(as_json(self._identifier, self.fields), separators=(",", ":"))
            kind = self.fields.get("type", "")
            shown = kind if _TYPE.fullmatch(kind) else "event"
            self._frame = f"id: {self._identifier}\nevent: {shown}\ndata: {body}\n\n".encode()
        return self._frame


def position_of(identifier: str) -> Position:
    """Return an event's id as two numbers.

    Raises:
        InvalidInputError: When it is none.
    """
    milliseconds, _, number = identifier.partition("-")
    if milliseconds.isdecimal() and number.isdecimal() and len(identifier) <= 40 and identifier.isascii():
        return int(milliseconds), int(number)
    raise InvalidInputError("that is not the id of an event; give one that a stream sent, such as 1700000000000-0")


def identifier_of(position: Position) -> str:
    """Return a position as an event's id."""
    return f"{position[0]}-{position[1]}"


def as_json(identifier: str, fields: Fields) -> dict[str, object]:
    """Return an event for programs: its fields, with numbers as numbers and the worker in its parts."""
    shown: dict[str, object] = {
        **fields,
        "id": identifier,
        "at": written_time(event_time(identifier)),
    }
    for name in ("port", "fence"):
        if _WHOLE.fullmatch(fields.get(name, "")):
            shown[name] = int(fields[name])
    with contextlib.suppress(InvalidInputError):
        worker = WorkerId.parse(fields.get("worker", ""))
        shown |= {"org": worker.org, "plugin": worker.plugin, "instance": worker.instance}
    return shown


class Hub:
    """The events of one pool, read once for everybody.

    Args:
        store: The connection to Redis.
        pool: The pool.
        on_event: Is called with each event that is read, for counting.
    """

    def __init__(self, store: AsyncStore, pool: str, on_event: Callable[[Fields], None] | None = None) -> None:
        self._store = store
        self._stream = events_key(pool)
        self._on_event = on_event
        self._recent: deque[PoolEvent] = deque(maxlen=MAX_EVENTS)
        self._floor: Position = (0, 0)
        self._waiting: set[asyncio.Future[None]] = set()
        self._listeners = 0
        self._task: asyncio.Task[None] | None = None
        self._started = asyncio.Event()
        self.position: Position = (0, 0)
        self.is_away = False
        self.closed = False

    def __repr__(self) -> str:
        return f"<Hub {self._stream} at {identifier_of(self.position)}, {self._listeners} listeners>"

    @property
    def listeners(self) -> int:
        """The number of listeners."""
        return self._listeners

    async def start(self) -> None:
        """Begin to read, from the newest event on; wait until the position is known or Redis is found to be away."""
        if self._task is None and not self.closed:
            self._task = asyncio.get_running_loop().create_task(self._read(), name="allocator-events")
        await self._started.wait()

    async def close(self) -> None:
        """Stop reading and end all listeners."""
        self.closed = True
        self._started.set()
        if self._task is not None:
            await end_tasks([self._task])
        await self._wake()

    async def _read(self) -> None:
        known = False
        loop, read_at = asyncio.get_running_loop(), 0.0
        while not self.closed:
            try:
                if not known:
                    newest = await self._store.newest_events(self._stream, 1)
                    self.position = self._floor = max(self.position, position_of(newest[0][0]) if newest else (0, 0))
                    known = True
                    self._started.set()
                rows = await self._store.read_events(
                    self._stream, identifier_of(self.position), 2 * PAGE, block_s=BLOCK_S
                )
            except AllocatorError as error:
                await self._set_away(error)
                continue
            if self.is_away:
                await self._set_back()
            for identifier, fields in rows:
                self._keep(PoolEvent(identifier, fields))
            if rows:
                flows, began = loop.time() - read_at < 2 * READ_PACE_S, loop.time()
                read_at = began
                await self._wake(min(LONGEST_PACE_S, PACE_S * len(self._waiting)))
                if flows:
                    await asyncio.sleep(max(0.0, READ_PACE_S - (loop.time() - began)))

    async def _set_away(self, error: AllocatorError) -> None:
        if not self.is_away:
            self.is_away = True
            log.warning("events are not read: %s", error)
            self._started.set()
            await self._wake()
        await asyncio.sleep(RETRY_S)

    async def _set_back(self) -> None:
        self.is_away = False
        log.warning("events are read again")
        await self._wake()

    def _keep(self, event: PoolEvent) -> None:
        if len(self._recent) == MAX_EVENTS:
            self._floor = self._recent[0].position
        self._recent.append(event)
        self.position = event.position
        if self._on_event is not None:
            self._on_event(event.fields)

    async def _wake(self, round_s: float = 0.0) -> None:
        waiting, self._waiting = list(self._waiting), set()
        slices = -(-len(waiting) // SLICE)
        for start in range(0, len(waiting), SLICE):
            for future in waiting[start : start + SLICE]:
                if not future.done():
                    future.set_result(None)
            await asyncio.sleep(round_s / slices)

    async def after(self, position: Position) -> list[PoolEvent]:
        """Return the events after a position that are there now, oldest first: a page of them when there are many."""
        if position >= self.position:
            return []
        if position >= self._floor:
            newer = itertools.takewhile(lambda event: event.position > position, reversed(self._recent))
            return list(newer)[::-1]
        rows = await self._store.read_events(self._stream, identifier_of(position), PAGE)
        return [PoolEvent(identifier, fields) for identifier, fields in rows]

    def has_forgotten(self, position: Position) -> bool:
        """Return whether events after a position are no longer in memory."""
        return position < self._floor

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Count one listener while the block lasts."""
        self._listeners += 1
        try:
            yield
        finally:
            self._listeners -= 1

    async def wait(self, seconds: float) -> bool:
        """Wait until something is new; return False when nothing was in that many seconds."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        try:
            async with asyncio.timeout(seconds):
                await future
        except TimeoutError:
            return False
        finally:
            self._waiting.discard(future)
        return True

    async def has_lost(self, position: Position) -> bool:
        """Return whether the stream no longer has all events after a position: it was capped, or Redis lost it."""
        rows = await self._store.read_events(self._stream, "0-0", 1)
        return bool(rows) and position_of(rows[0][0]) > position > (0, 0)
