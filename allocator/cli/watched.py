"""A pool as `top` watches it: the same index as the API's, read once and then kept current by the pool's events.

The rule of this file: a pool of 300 hosts is read in whole at the start only; afterwards each look costs a request for
the events and for a few of the hosts, so that all of them are read again within a minute.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING

from allocator.api.index import FleetIndex
from allocator.kernel.socket_tables import listening_ports
from allocator.model.pools import FLEET_NAMESPACE
from allocator.operations import listing
from allocator.operations.context import pool_rules
from allocator.protocol.keys import event_time, events_key
from allocator.protocol.signatures.inspect import InspectPortCall
from allocator.protocol.wire import ask

if TYPE_CHECKING:
    from allocator.client.blocking import PortAllocator
    from allocator.store.base import Event

CHECK_S = 60.0
PAST_EVENTS = 5_000
EVENTS_AT_ONCE = 1_000
PAST_PAGES = 20
"""How far back the events of a port are looked for: the stream is capped at about 10,000."""
MOST_SHOWN = 500
DETAILS = 50
"""Leases that are read after their events in one look."""


class Past:
    """What happened to a port.

    Args:
        host: Its host.
        port: The port.

    Attributes:
        seen: The id of the newest event of the pool that was looked at.
        since: When the oldest of these was, in Unix seconds; None when there is none.
        events: Those of the port with their times, newest first.
    """

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port
        self.seen = "0-0"
        self.since: float | None = None
        self.events: deque[tuple[float, dict[str, str]]] = deque(maxlen=MOST_SHOWN)

    def __repr__(self) -> str:
        return f"<Past of {self.host}:{self.port}, {len(self.events)} events>"

    def add(self, rows: list[Event]) -> None:
        """Take events of the pool that are newer than those before, oldest first."""
        for identifier, fields in rows:
            self.seen, at = identifier, event_time(identifier)
            self.since = at if self.since is None else self.since
            if fields.get("host") == self.host and fields.get("port") == str(self.port):
                self.events.appendleft((at, fields))


class WatchedPool:
    """A pool that is looked at again and again.

    Args:
        allocator: The connection to Redis.
        pool: The pool.
        every_s: How often it is looked at.
        is_default: Whether commands mean it without `--pool`.
    """

    def __init__(self, allocator: PortAllocator, pool: str, every_s: float, *, is_default: bool) -> None:
        self._allocator = allocator
        self._pool = pool
        self._every_s = every_s
        self._is_default = is_default
        self._position = "0-0"
        self._next = 0
        self._past: Past | None = None
        self.index: FleetIndex | None = None
        self.now = 0.0

    def __repr__(self) -> str:
        return f"<WatchedPool of {self.index!r}>"

    def look(self) -> FleetIndex:
        """Return the pool as it is.

        Raises:
            AllocatorError: When Redis cannot be read; the next look reads everything again.
        """
        index, self.index = self.index, None
        self.now = self._allocator.store.server_time()
        if index is None or not self._follow(index):
            index = self._read_all()
        self._see_strangers(index)
        index.rest(self.now)
        self.index = index
        return index

    def past_of(self, host: str, port: int) -> Past:
        """Return the events of a port, as far back as the stream goes: read once, then only what is new."""
        key, store = events_key(self._pool), self._allocator.store
        if self._past is not None and (self._past.host, self._past.port) == (host, port):
            rows = store.read_events(key, self._past.seen, EVENTS_AT_ONCE)
            if len(rows) < EVENTS_AT_ONCE:
                self._past.add(rows)
                return self._past
        past, before = Past(host, port), "+"
        pages: list[list[Event]] = []
        while len(pages) < PAST_PAGES and (rows := store.newest_events(key, EVENTS_AT_ONCE, before_id=before)):
            pages.append(rows)
            before = f"({rows[0][0]}"
        for rows in reversed(pages):
            past.add(rows)
        self._past = past
        return past

    def _read_all(self) -> FleetIndex:
        at = self._allocator
        rules = at.run(pool_rules(at.session.context, self._pool, fresh=True))
        index = FleetIndex(rules, is_default=self._is_default)
        self._position = at.run(listing.newest_event(self._pool))
        for name in at.run(listing.namespaces(self._pool)):
            self._read_host(index, name)
        for identifier, fields in reversed(at.store.newest_events(events_key(self._pool), PAST_EVENTS)):
            index.learn_since(fields, event_time(identifier))
        return index

    def _read_host(self, index: FleetIndex, name: str) -> None:
        known, ports = self._allocator.run(listing.known_namespace(index.rules, name, index.read.get(name)))
        if not known.identity and not ports and name != FLEET_NAMESPACE:
            index.forget(name)
        else:
            index.load(name, known, ports, self.now)

    def _follow(self, index: FleetIndex) -> bool:
        """Apply what happened since the last look; False when everything has to be read again."""
        at = self._allocator
        events = at.store.read_events(events_key(self._pool), self._position, EVENTS_AT_ONCE)
        if len(events) == EVENTS_AT_ONCE or any(fields.get("type") == "pool" for _, fields in events):
            return False
        for identifier, fields in events:
            self._position = identifier
            index.apply(fields, event_time(identifier))
        names = at.run(listing.namespaces(self._pool))
        index.drop_others([*names, *(name for name, entry in index.hosts.items() if entry.cells)])
        share = min(len(names), math.ceil(len(names) * self._every_s / CHECK_S))
        again = {names[(self._next + number) % len(names)] for number in range(share)}
        self._next += share
        unread, index.unread_hosts = index.unread_hosts | again, set()
        for name in sorted(unread):
            self._read_host(index, name)
        for _ in range(min(DETAILS, len(index.unread))):
            (host, port), _nothing = index.unread.popitem(last=False)
            namespace = FLEET_NAMESPACE if index.rules.scope == "fleet" else host
            index.load_port(host, at.run(ask(InspectPortCall(pool=self._pool, namespace=namespace, port=port))))
        return True

    def _see_strangers(self, index: FleetIndex) -> None:
        own = self._allocator.session.host
        if own in index.hosts:
            index.set_strangers(own, listening_ports(index.rules.first, index.rules.last), self.now)
