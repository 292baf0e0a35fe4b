"""Keeps the index of a pool current: one reader of its events however many ask, and a full reading as a check.

The rules of this file: all of a pool is read at the start, after a gap in its events or a Redis that was away, and
every minute, host by host with pauses, so that neither Redis nor a request waits behind it. Between these the events
are applied in batches, and what they do not state of a new lease is read afterwards, a few a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import OrderedDict
from typing import TYPE_CHECKING

from allocator.api.background import end_tasks
from allocator.api.index import FleetIndex
from allocator.kernel.socket_tables import listening_ports
from allocator.model.errors import AllocatorError, StoreUnavailableError
from allocator.model.pools import FLEET_NAMESPACE
from allocator.operations import listing
from allocator.operations.context import pool_rules
from allocator.protocol.keys import event_time, events_key
from allocator.protocol.signatures.inspect import InspectPortCall
from allocator.protocol.wire import ask

if TYPE_CHECKING:
    from collections.abc import Callable

    from allocator.api.claims import Claims
    from allocator.api.events import Hubs
    from allocator.api.hub import Hub
    from allocator.protocol.signatures.inspect import KnownPort

CHECK_S = 60.0
"""All hosts are read once in this time, a few at each batch, so that the work is spread evenly."""
PACE_S = 0.4
"""Seconds between two batches of events."""
DETAILS = 4
"""Leases that are read after their events in one batch, while little happens."""
MUCH = 10
"""Events in a batch from which on only one lease is read: others wait for a quieter moment, or the minute's check."""
PAST_EVENTS = 10_000
PAST_PAGE = 1_000
FIRST_S = 15.0
"""How long a request waits for the first reading."""
MAX_KEEPERS = 16
"""Pools whose index is held in memory; the least recently used one is dropped."""
RETRY_S = 1.0
ANSWER_S = 0.25
"""How old an answer may be: fifty open pages cost no more than four."""
MOST_ANSWERS = 64

log = logging.getLogger("allocator.api")


class Keeper:
    """Keeps the index of one pool.

    Args:
        claims: The connection to Redis.
        hub: The pool's events.
        pool: The pool.
    """

    def __init__(self, claims: Claims, hub: Hub, pool: str) -> None:
        self._claims = claims
        self._at = claims.pool(pool)
        self._hub = hub
        self.index: FleetIndex | None = None
        self.failure: AllocatorError | None = None
        self._answers: dict[tuple[object, ...], tuple[float, bytes]] = {}
        self._read = asyncio.Event()
        self._news = asyncio.Event()
        self.closed = False
        self._tasks = [asyncio.get_running_loop().create_task(self._keep(), name="allocator-index")]

    def __repr__(self) -> str:
        return f"<Keeper of {self.index!r}>"

    async def ready(self) -> FleetIndex:
        """Return the index, after its first reading.

        Raises:
            AllocatorError: When the pool could not be read yet.
        """
        if self.index is None:
            try:
                async with asyncio.timeout(FIRST_S):
                    await self._read.wait()
            except TimeoutError:
                pass
        if self.index is None:
            raise self.failure or StoreUnavailableError(
                f"pool {self._at.session.pool} is still being read for the first time; try again in a few seconds"
            )
        return self.index

    def answer(self, key: tuple[object, ...], make: Callable[[], bytes]) -> bytes:
        """Return an answer that is made at most a few times a second, however many ask for it."""
        now = asyncio.get_running_loop().time()
        made_at, answer = self._answers.get(key, (-ANSWER_S, b""))
        if now - made_at >= ANSWER_S:
            if len(self._answers) >= MOST_ANSWERS:
                self._answers.clear()
            made_at, answer = now, make()
            self._answers[key] = made_at, answer
        return answer

    async def news(self, seconds: float) -> None:
        """Wait for the next batch of events, but no longer than that; there may be one who waits."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._news.wait()
        self._news.clear()

    async def close(self) -> None:
        """Stop."""
        self.closed = True
        self._news.set()
        await end_tasks(self._tasks)

    @property
    def hub(self) -> Hub:
        """The pool's events."""
        return self._hub

    @property
    def is_live(self) -> bool:
        """Whether the index follows the events just now."""
        return self.index is not None and not self._hub.is_away and self.failure is None

    async def _keep(self) -> None:
        while not self._hub.closed:
            try:
                await self._hub.start()
                await self._follow()
            except AllocatorError as error:
                self.failure = error
                self._read.set()
                await asyncio.sleep(RETRY_S)
                self._read.clear()

    async def _follow(self) -> None:
        """Read all, then apply events until something is missing."""
        loop = asyncio.get_running_loop()
        position = self._hub.position
        await self._read_all(within_s=0.0)
        self.failure = None
        self._read.set()
        assert self.index is not None  # noqa: S101  # it was read just now
        checking: asyncio.Task[None] | None = None
        try:
            while not self._hub.closed and not self._hub.is_away:
                if self._hub.has_forgotten(position):
                    return
                events = await self._hub.after(position)
                for event in events:
                    position = event.position
                    if event.fields.get("type") == "pool":
                        self._at.session.context.rules.clear()
                        return  # the rules are others: all over again
                    self.index.apply(event.fields, event.position[0] / 1_000)
                await self._catch_up(DETAILS if len(events) < MUCH else 1)
                self._news.set()
                if checking is not None and checking.done():
                    checking = checking.result()
                elif checking is None:
                    checking = loop.create_task(self._read_all(within_s=CHECK_S), name="allocator-check")
                if position >= self._hub.position:
                    await self._hub.wait(1.0)
                await asyncio.sleep(PACE_S)
        finally:
            if checking is not None:
                await end_tasks([checking])
            self._news.set()
        await self._hub.wait(1.0)  # until Redis is back, then all over again

    async def _catch_up(self, details: int) -> None:
        """Read what events did not contain, of `details` leases at most, and find the ports whose rest is over."""
        index = self.index
        assert index is not None  # noqa: S101  # as above
        rules = index.rules
        unread, index.unread_hosts = index.unread_hosts, set()
        for host in unread:
            await self._read_host(index, host)
        for _ in range(min(details, len(index.unread))):
            (host, port), _nothing = index.unread.popitem(last=False)
            namespace = FLEET_NAMESPACE if rules.scope == "fleet" else host
            index.load_port(host, await self._ask(InspectPortCall(pool=rules.name, namespace=namespace, port=port)))
        now = self.now()
        index.rest(now)
        if self._claims.host in index.hosts:
            index.set_strangers(self._claims.host, listening_ports(rules.first, rules.last), now)

    _offset = 0.0

    async def _set_clock(self) -> None:
        self._offset = await self._claims.allocator.store.server_time() - asyncio.get_running_loop().time()

    def now(self) -> float:
        """Return the server's time, as far as the last reading and the clock of this process tell it."""
        return asyncio.get_running_loop().time() + self._offset

    async def _read_all(self, *, within_s: float) -> None:
        await self._set_clock()
        rules = await self._at.run(pool_rules(self._at.session.context, self._at.session.pool, fresh=True))
        names = await self._at.run(listing.namespaces(rules.name))
        index = self.index
        is_first = index is None or index.rules != rules
        if index is None or is_first:
            index = FleetIndex(rules, is_default=rules.name == self._claims.allocator.session.pool)
        pause_s = within_s / max(1, len(names))
        for name in names:
            await self._read_host(index, name)
            await asyncio.sleep(pause_s)
        if not names:
            await asyncio.sleep(pause_s)
        names = await self._at.run(listing.namespaces(rules.name))  # some may be new since
        index.drop_others([*names, *(name for name, entry in index.hosts.items() if entry.cells)])
        if is_first:
            await self._read_past(index)
        self.index = index

    async def _read_host(self, index: FleetIndex, name: str) -> None:
        asked_at = self.now()
        known, ports = await self._at.run(listing.known_namespace(index.rules, name, index.read.get(name)))
        if not known.identity and not ports and name != FLEET_NAMESPACE:
            index.forget(name)
            return
        index.load(name, known, ports, asked_at)

    async def _read_past(self, index: FleetIndex) -> None:
        """Find since when each port has its present state, from the events that the stream still has."""
        before = "+"
        for _ in range(PAST_EVENTS // PAST_PAGE):
            rows = await self._at.store.newest_events(events_key(index.rules.name), PAST_PAGE, before_id=before)
            for identifier, fields in reversed(rows):
                index.learn_since(fields, event_time(identifier))
            if len(rows) < PAST_PAGE:
                return
            before = f"({rows[0][0]}"

    async def _ask(self, call: InspectPortCall) -> KnownPort:
        return await self._at.run(ask(call))


class Keepers:
    """The keepers of the pools that clients ask for.

    Args:
        claims: The connection to Redis.
        hubs: Whose events they follow.
    """

    def __init__(self, claims: Claims, hubs: Hubs) -> None:
        self._claims = claims
        self._hubs = hubs
        self._keepers: OrderedDict[str, Keeper] = OrderedDict()

    def __repr__(self) -> str:
        return f"<Keepers of {', '.join(self._keepers)}>"

    @property
    def kept(self) -> dict[str, Keeper]:
        """The keepers by pool."""
        return dict(self._keepers)

    async def of(self, pool: str) -> Keeper:
        """Return the keeper of a pool, which may still be reading.

        Raises:
            PoolMissingError: When nobody knows the pool.
        """
        if pool not in self._keepers:
            await self._claims.rules(self._claims.pool(pool))
            keeper = Keeper(self._claims, await self._hubs.start(pool), pool)
            self._keepers.setdefault(pool, keeper)
            if self._keepers[pool] is not keeper:  # another request was first
                await keeper.close()
        self._keepers.move_to_end(pool)
        if len(self._keepers) > MAX_KEEPERS:
            _, oldest = self._keepers.popitem(last=False)
            await oldest.close()
        return self._keepers[pool]

    async def close(self) -> None:
        """Stop all of them."""
        for keeper in self._keepers.values():
            await keeper.close()
