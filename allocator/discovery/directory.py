"""The directory: which workers of which services are ready, kept current by the pool's events in one thread.

The rule of this file: a reader never waits for Redis. Events only say which service to read again; a slow pass over all
services follows what sends no event (a lease that ran out unseen). While Redis is away, what was known stays.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Self

from allocator.model.errors import AllocatorError, InvalidInputError
from allocator.model.names import WorkerId
from allocator.protocol.keys import events_key

if TYPE_CHECKING:
    from collections.abc import Callable

    from allocator.client.blocking import PortAllocator
    from allocator.model.endpoints import Endpoint

ServiceName = tuple[str, str]
"""Plugin and organisation."""

REFRESH_S = 5.0
"""How often all services are read again, events or not."""
WAIT_S = 1.0
"""How long the thread waits for an event before it looks whether it has to end."""
RETRY_S = 0.5
EVENTS_AT_ONCE = 1_000
_OF_ALL = frozenset({"registered", "forgotten", "pool"})
"""Events that concern no worker but may change every address."""

log = logging.getLogger("allocator")


class Directory:
    """The ready workers of services, read once and then kept current.

    Args:
        allocator: Connects to the pool; the directory does not close it.
        whole_pool: Whether every service of the pool is wanted, those that come up later included.
        wanted: Which services are wanted of the whole pool, by plugin and organisation.
        clock: The monotonic clock, in seconds.
    """

    def __init__(
        self,
        allocator: PortAllocator,
        *,
        whole_pool: bool = False,
        wanted: Callable[[str, str], bool] = lambda _plugin, _org: True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._allocator = allocator
        self._whole_pool = whole_pool
        self._wanted = wanted
        self._clock = clock
        self._known: dict[ServiceName, tuple[Endpoint, ...]] = {}
        self._changed = threading.Condition()
        self._version = 0
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self.stale = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        condition = "stale: Redis is away" if self.stale else "current"
        return f"<Directory of pool {self._allocator.session.pool}: {len(self._known)} services, {condition}>"

    def start(self) -> None:
        """Read what is wanted and keep it current from now on.

        Raises:
            AllocatorError: When Redis cannot be read now.
        """
        with self._changed:
            if self._thread is not None:
                return
            cursor = self._newest_event()
            self._read_all()
            self._thread = threading.Thread(
                target=self._follow, args=(cursor,), name="allocator-directory", daemon=True
            )
            self._thread.start()

    def add(self, plugin: str, org: str) -> None:
        """Want one more service; its workers are read before this returns.

        Raises:
            AllocatorError: When Redis cannot be read now.
        """
        self.start()
        if (plugin, org) not in self._known:
            found = tuple(self._allocator.endpoints(plugin, org=org))
            with self._changed:
                self._known.setdefault((plugin, org), found)

    def endpoints(self, plugin: str, org: str) -> tuple[Endpoint, ...]:
        """Return the ready workers of a service that was added, by address, as last known."""
        return self._known.get((plugin, org), ())

    def services(self) -> dict[ServiceName, tuple[Endpoint, ...]]:
        """Return the ready workers of all services, by plugin and organisation; of some perhaps none."""
        with self._changed:
            return dict(sorted(self._known.items()))

    def wait_for_change(self, seen: int, seconds: float | None) -> int:
        """Return the number of the newest change; wait for one after `seen` for at most so many seconds.

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

    def _read_all(self) -> None:
        names = set(self._known)
        if self._whole_pool:
            leased = {(lease.plugin, lease.org) for lease in self._allocator.leases()}
            names |= {name for name in leased if self._wanted(*name)}
        self._read(names)

    def _read(self, names: set[ServiceName]) -> None:
        for plugin, org in sorted(names):
            found = tuple(self._allocator.endpoints(plugin, org=org))
            with self._changed:
                if self._known.get((plugin, org)) != found:
                    self._known[plugin, org] = found
                    self._version += 1
                    self._changed.notify_all()

    def _follow(self, cursor: str) -> None:
        refresh_at = self._clock() + REFRESH_S
        while not self._closed.is_set():
            try:
                touched, cursor = self._touched(cursor)
                if touched is None or self._clock() >= refresh_at or self.stale:
                    self._read_all()
                    refresh_at = self._clock() + REFRESH_S
                else:
                    self._read(touched)
                self.stale = False
            except AllocatorError as error:
                if not self.stale and not self._closed.is_set():
                    log.warning("the directory is not kept current for now; what it knows stays (%s)", error)
                self.stale = True
                self._closed.wait(RETRY_S)

    def _touched(self, cursor: str) -> tuple[set[ServiceName] | None, str]:
        """Return which services the next events concern (None: perhaps all), and the last event that was read."""
        store = self._allocator.store
        if not store.wait_for_event(self._stream, cursor, WAIT_S):
            return set(), cursor
        events = store.read_events(self._stream, cursor, EVENTS_AT_ONCE)
        names: set[ServiceName] = set()
        for _, fields in events:
            if fields.get("type") in _OF_ALL:
                return None, events[-1][0]
            try:
                worker = WorkerId.parse(fields.get("worker", ""))
            except InvalidInputError:
                continue
            name = worker.plugin, worker.org
            if name in self._known or (self._whole_pool and self._wanted(*name)):
                names.add(name)
        return names, events[-1][0] if events else cursor
