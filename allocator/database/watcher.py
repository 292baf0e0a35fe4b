"""The loop around the reconciler: lead or stand by, make a pass, follow the events until the next, wait out outages.

The rule of this file: a Redis or a database that is away never ends the loop; only a request to stop does, and what
waiting does not fix (a table that is gone, rights that were taken). What was missed meanwhile is not remembered
anywhere; the next pass finds it.
"""

from __future__ import annotations

import contextlib
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from allocator.database.fenced import DeposedError
from allocator.database.reconciler import Report
from allocator.model.backoff import Backoff
from allocator.model.errors import AllocatorError, DatabaseUnavailableError, StoreUnavailableError
from allocator.model.names import WorkerId
from allocator.protocol.keys import events_key

if TYPE_CHECKING:
    from collections.abc import Callable

    from allocator.database.reconciler import Reconciler
    from allocator.operations.lead import Leadership

BACKOFF = Backoff(first=0.2, longest=2.0, least=0.5)
"""Bounds of the pause between two tries: a database that is back is noticed within two seconds."""

STAND_BY_S = 1.0
"""Seconds between two tries of a stand-by to lead; a leader that was killed is followed within its TTL."""

EVENTS_AT_ONCE = 1_000

log = logging.getLogger("allocator")


class Gauge(Protocol):
    """Receives what the loop does, for metrics."""

    def leads(self, *, leads: bool) -> None:
        """Receive whether this reconciler leads."""
        ...

    def passed(self, report: Report, seconds: float) -> None:
        """Receive a whole pass."""
        ...

    def followed(self, report: Report, lag_s: float) -> None:
        """Receive that events were settled, with the age of the last one in seconds."""
        ...

    def failed(self, error: AllocatorError) -> None:
        """Receive that Redis or the database did not answer."""
        ...


def patiently(make: Callable[[], Reconciler], report: Callable[[str], None]) -> Reconciler:
    """Return what `make` makes, waiting for a Redis or a database that is away.

    Raises:
        ConfigurationError: When it cannot be used as it is, which waiting does not fix.
    """
    failures = 0
    while True:
        try:
            return make()
        except (DatabaseUnavailableError, StoreUnavailableError) as error:
            if failures == 0:
                report(f"{error}; waiting for it")
            failures += 1
            time.sleep(BACKOFF.pause(failures))


@dataclass(slots=True)
class Watch:
    """Keeps one pool's rows right until it is stopped.

    Attributes:
        reconciler: Compares and writes; it has a leader's candidacy.
        every_s: Seconds between the beginnings of two passes.
        report: Prints in one line what changed.
        gauge: Takes in what happens, for metrics, or None.
        first: What a new leader does once before its first pass.
    """

    reconciler: Reconciler
    every_s: float
    report: Callable[[str], None]
    gauge: Gauge | None = None
    first: Callable[[], None] | None = None
    _cursor: str = "0-0"
    _failures: int = 0
    _stands_by_for: str | None = None
    _leads: bool = False
    _began: bool = False

    def run(self, should_stop: Callable[[], bool]) -> None:
        """Work until `should_stop`; the leadership is given up at the end."""
        leader = self.reconciler.leader
        assert leader is not None  # noqa: S101  # whoever watches writes
        try:
            while not should_stop():
                self._lead_and_reconcile_once(should_stop)
        finally:
            with contextlib.suppress(AllocatorError):
                leader.give_up()

    def _lead_and_reconcile_once(self, should_stop: Callable[[], bool]) -> None:
        try:
            if self._lead():
                self._reconcile(should_stop)
            self._failures = 0
        except DeposedError:
            assert self.reconciler.leader is not None  # noqa: S101  # as above
            self.reconciler.leader.step_down()
            self._lead_no_more("another reconciler")
            self._failures += 1
            time.sleep(BACKOFF.pause(self._failures))
        except (DatabaseUnavailableError, StoreUnavailableError) as error:
            self._wait_out(error)

    def _lead(self) -> bool:
        leader, reconciler = self.reconciler.leader, self.reconciler
        assert leader is not None  # noqa: S101  # as above
        if leader.fence is None:
            with reconciler.database.reading() as connection:
                leader.known_fence = reconciler.rows.leader_fence(connection)
        held = leader.take()
        if held.fence is not None:
            if not self._leads:
                self._begin_to_lead()
            return True
        self._lead_no_more(held.holder)
        self._stand_by(held)
        return False

    def _begin_to_lead(self) -> None:
        self._leads, self._stands_by_for = True, None
        self.report(f"leading the reconcilers of pool {self.reconciler.rows.pool}")
        if self.gauge:
            self.gauge.leads(leads=True)

    def _lead_no_more(self, other: str) -> None:
        if self._leads or self._stands_by_for != other:
            self.report(f"standing by: {other} leads the reconcilers of pool {self.reconciler.rows.pool}")
        self._leads, self._began, self._stands_by_for = False, False, other
        if self.gauge:
            self.gauge.leads(leads=False)

    def _stand_by(self, held: Leadership) -> None:
        time.sleep(max(0.01, min(STAND_BY_S, held.remaining_ms / 1_000)))

    def _reconcile(self, should_stop: Callable[[], bool]) -> None:
        """Make a pass, seeing to events in between, then follow the events until the next pass is due."""
        began = time.monotonic()
        if self.first and not self._began:
            self.first()
        self._began = True
        report = Report()
        store, stream = self.reconciler.allocator.store, events_key(self.reconciler.rows.pool)
        newest = store.newest_events(stream, 1)
        self._cursor = newest[-1][0] if newest else "0-0"
        for _ in self.reconciler.walk(report):
            self._see_to_events()
        if self.gauge:
            self.gauge.passed(report, time.monotonic() - began)
        if self._failures:
            self.report("Redis and the database answer again, and are equal")
        self._failures = 0
        while not should_stop() and (left_s := began + self.every_s - time.monotonic()) > 0:
            assert self.reconciler.leader is not None  # noqa: S101  # as above
            self.reconciler.leader.renew()
            wait_s = min(left_s, self.reconciler.leader.ttl_ms / 3_000)
            if store.wait_for_event(stream, self._cursor, wait_s):
                self._see_to_events()

    def _see_to_events(self) -> None:
        """Settle the workers that events name; both sides are read again, and the events' fields are not used."""
        store, stream = self.reconciler.allocator.store, events_key(self.reconciler.rows.pool)
        while batch := store.read_events(stream, self._cursor, EVENTS_AT_ONCE):
            workers: dict[WorkerId, None] = {}
            for _, fields in batch:
                with contextlib.suppress(AllocatorError):
                    workers[WorkerId.parse(fields.get("worker", ""))] = None
            report = Report()
            self.reconciler.settle(list(workers), report)
            self._cursor = batch[-1][0]
            if self.gauge:
                happened_at = int(self._cursor.partition("-")[0]) / 1_000
                self.gauge.followed(report, max(0.0, self.reconciler.now() - happened_at))
            if len(batch) < EVENTS_AT_ONCE:
                return

    def _wait_out(self, error: AllocatorError) -> None:
        if self._failures == 0:
            self.report(f"{error}; waiting for it")
        log.debug("attempt %d: %s", self._failures + 1, error)
        if self.gauge:
            self.gauge.failed(error)
            self.gauge.leads(leads=False)
        if isinstance(error, DatabaseUnavailableError) and self.reconciler.leader is not None:
            self.reconciler.leader.step_down()  # a stand-by may have a database that answers
        self._leads = False
        self._failures += 1
        time.sleep(BACKOFF.pause(self._failures))
