"""The directory: which workers of which services are ready, kept current by the pool's events in one thread.

The rule of this file: a reader never waits for Redis. Events name the service to read again, and end addresses; a slow
pass over all services follows what sends no event (a lease that ran out unseen, a Redis that was emptied). What stays
known without Redis, and for how long, `memory` decides.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Self

from allocator.discovery.memory import AddressMemory, ServiceName
from allocator.model.errors import AllocatorError, ConfigurationError, InvalidInputError
from allocator.model.names import WorkerId
from allocator.model.pools import SDK_V2
from allocator.operations.context import read_pool
from allocator.operations.resolve import sightings
from allocator.protocol.keys import events_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from allocator.client.blocking import PortAllocator
    from allocator.model.endpoints import Endpoint
    from allocator.model.pools import PoolSpec
    from allocator.store.base import Event

REFRESH_S = 5.0
"""How often all services are read again, events or not."""
WAIT_S = 1.0
"""How long the thread waits for an event before it looks whether it has to end."""
RETRY_S = 0.5
EVENTS_AT_ONCE = 1_000
FIRST_EVENTS = 100
"""So many of a stream's first events show whether it began with what holders re-asserted."""
_AFTER_A_LOSS = frozenset({"reasserted", "recovering"})
_OF_ALL = frozenset({"registered", "forgotten", "pool"})
"""Events that concern no worker but may change every address."""

log = logging.getLogger("allocator")


class Directory:
    """The ready workers of services, read once and then kept current.

    Args:
        allocator: Connects to the pool; the directory does not close it.
        whole_pool: Whether every service of the pool is wanted, those that come up later included.
        wanted: Which services are wanted of the whole pool, by plugin and organisation.
        always: Services that are wanted in any case, by plugin and organisation.
        clock: The monotonic clock, in seconds.
    """

    def __init__(
        self,
        allocator: PortAllocator,
        *,
        whole_pool: bool = False,
        wanted: Callable[[str, str], bool] = lambda _plugin, _org: True,
        always: Iterable[ServiceName] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._allocator = allocator
        self._whole_pool = whole_pool
        self._wanted = wanted
        self._clock = clock
        self._memory = AddressMemory(clock=clock)
        self._known: dict[ServiceName, tuple[Endpoint, ...]] = dict.fromkeys(always, ())
        self._current_at: float | None = None
        self._complaints: dict[str, str] = {}
        self._changed = threading.Condition()
        self._reading = threading.RLock()
        self._version = 0
        self._complete_at = 0.0
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self.stale = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        condition = f"Redis is away, known {self.age_s:.0f} s ago" if self.stale else "current"
        return f"<Directory of pool {self._allocator.session.pool}: {len(self._known)} services, {condition}>"

    @property
    def age_s(self) -> float:
        """Seconds since Redis last answered; 0.0 while it answers."""
        return self._clock() - self._current_at if self.stale and self._current_at is not None else 0.0

    @property
    def incomplete_s(self) -> float:
        """For how many seconds a worker of the whole pool may be missing: Redis had lost its data when it was read."""
        return max(0.0, self._complete_at - self._clock())

    def start(self) -> None:
        """Read the workers of the chosen services and keep them current from now on.

        Raises:
            AllocatorError: When Redis cannot be read now.
        """
        with self._changed:
            if self._thread is not None:
                return
            cursor = self._newest_event()
            rules = self._read_all()
            self._current_at = self._clock()
            if self._whole_pool:  # who chose services waits for them, and has no file of before
                self._complete_at = self._current_at + self._incomplete_s(rules or SDK_V2)
            self._thread = threading.Thread(
                target=self._follow, args=(cursor,), name="allocator-directory", daemon=True
            )
            self._thread.start()

    def add(self, plugin: str, org: str) -> None:
        """Add a service; its workers are read before this returns.

        Raises:
            AllocatorError: When Redis cannot be read now.
        """
        self.start()
        with self._reading:
            if (plugin, org) not in self._known:
                self._read({(plugin, org)})

    def endpoints(self, plugin: str, org: str) -> tuple[Endpoint, ...]:
        """Return the ready workers of a service that was added, by address, as last known."""
        return self._known.get((plugin, org), ())

    def services(self) -> dict[ServiceName, tuple[Endpoint, ...]]:
        """Return the ready workers of all services, by plugin and organisation; of some perhaps none."""
        with self._changed:
            return dict(sorted(self._known.items()))

    def wait_for_change(self, seen: int, seconds: float | None) -> int:
        """Return the number of the newest change; wait for one after `seen` for at most that many seconds.

        Args:
            seen: The number that an earlier call returned; 0 at first.
            seconds: None to wait for as long as it takes.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._version > seen or self._closed.is_set(), seconds)
            return self._version

    def close(self) -> None:
        """End the thread; what is known stays readable."""
        self._closed.set()
        with self._changed:
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(2 * WAIT_S)

    def _newest_event(self) -> str:
        newest = self._allocator.store.newest_events(self._stream, 1)
        return newest[-1][0] if newest else "0-0"

    @property
    def _stream(self) -> str:
        return events_key(self._allocator.session.pool)

    def _incomplete_s(self, rules: PoolSpec) -> float:
        """Return for how long holders may go on re-asserting their leases: for one TTL after the data was lost."""
        store, ttl_s = self._allocator.store, rules.ttl_ms / 1_000
        first = store.read_events(self._stream, "0-0", FIRST_EVENTS)
        if not first:
            return ttl_s  # nobody has ever claimed, or all of it is lost
        if not _is_after_a_loss(first):
            return 0.0
        return max(0.0, _position(first[0][0])[0] / 1_000 + ttl_s - store.server_time())

    def _read_all(self) -> PoolSpec | None:
        """Read all services that are wanted; return the rules of the pool, None when Redis has no such pool."""
        rules = self._allocator.run(read_pool(self._allocator.session.pool))
        self._memory.is_fleet = rules is not None and rules.scope == "fleet"
        names = set(self._known)
        if self._whole_pool:
            leased = {(lease.plugin, lease.org) for lease in self._allocator.leases()}
            names |= {name for name in leased if self._wanted(*name)}
        self._read(names)
        return rules

    def _read(self, names: set[ServiceName]) -> None:
        pool = self._allocator.session.pool
        for plugin, org in sorted(names):
            try:
                seen = self._allocator.run(sightings(pool, plugin, org))
            except ConfigurationError as error:  # a key that another program broke costs the other services nothing
                self._complain(f"{org}/{plugin}", error)
                continue
            self._memory.see([(plugin, org)], seen)
            self._publish({(plugin, org)})
            self._complaints.pop(f"{org}/{plugin}", None)

    def _complain(self, service: str, error: ConfigurationError) -> None:
        """Log why a service cannot be read, once until it can or the reason is another."""
        if self._complaints.get(service) != str(error):
            self._complaints[service] = str(error)
            log.warning("the addresses of %s are not updated; the known ones stay in use (%s)", service, error)

    def _publish(self, names: set[ServiceName]) -> None:
        """Make what is known now visible to readers, and wake those who wait for a change."""
        with self._changed:
            for name in names | self._memory.take_touched():
                found = self._memory.endpoints(name)
                if self._known.get(name) != found:
                    self._known[name] = found
                    self._version += 1
                    self._changed.notify_all()

    def _follow(self, cursor: str) -> None:
        refresh_at = self._clock() + REFRESH_S
        while not self._closed.is_set():
            try:
                touched, cursor = self._touched(cursor)
                with self._reading:
                    if self.stale:
                        self._memory.doubt()
                    if touched is None or self._clock() >= refresh_at or self.stale:
                        cursor = self._cursor_after_data_loss(cursor)
                        self._read_all()
                        refresh_at = self._clock() + REFRESH_S
                    else:
                        self._read(touched | self._memory.overdue())
                self._now_current()
            except AllocatorError as error:
                self._now_stale(error)
                self._closed.wait(RETRY_S)

    def _now_current(self) -> None:
        if self.stale:
            log.info("the directory is up to date again, after %.0f s", self.age_s)
        self.stale = False
        self._current_at = self._clock()

    def _now_stale(self, error: AllocatorError) -> None:
        if not self.stale and not self._closed.is_set():
            self.stale = True
            details = (self.age_s, error)
            log.warning("the directory is not updated; the addresses of %.0f s ago stay in use (%s)", *details)

    def _cursor_after_data_loss(self, cursor: str) -> str:
        """Return the event to read on from: the first one when Redis lost its data and numbers events anew."""
        return cursor if _position(self._newest_event()) >= _position(cursor) else "0-0"

    def _touched(self, cursor: str) -> tuple[set[ServiceName] | None, str]:
        """Apply the next events; return which services they concern (None: perhaps all), and the last that was read."""
        store = self._allocator.store
        if not store.wait_for_event(self._stream, cursor, WAIT_S):
            return set(), cursor
        events = store.read_events(self._stream, cursor, EVENTS_AT_ONCE)
        if cursor == "0-0" and not _is_after_a_loss(events):  # it is a new registry
            self._complete_at = 0.0
        names: set[ServiceName] | None = set()
        with self._reading:
            for _, fields in events:
                self._memory.hear(fields)
                if fields.get("type") in _OF_ALL:
                    names = None
                elif names is not None and (name := self._service_of(fields)) is not None:
                    names.add(name)
        return names, events[-1][0] if events else cursor

    def _service_of(self, fields: Mapping[str, str]) -> ServiceName | None:
        """Return the service that an event concerns, where it is wanted."""
        try:
            worker = WorkerId.parse(fields.get("worker", ""))
        except InvalidInputError:
            return None
        name = worker.plugin, worker.org
        return name if name in self._known or (self._whole_pool and self._wanted(*name)) else None


def _is_after_a_loss(events: Iterable[Event]) -> bool:
    return any(fields.get("type") in _AFTER_A_LOSS for _, fields in events)


def _position(event_id: str) -> tuple[int, int]:
    """Return an event's id as two numbers, to compare it."""
    milliseconds, _, number = event_id.partition("-")
    return (int(milliseconds), int(number)) if milliseconds.isdecimal() and number.isdecimal() else (0, 0)
