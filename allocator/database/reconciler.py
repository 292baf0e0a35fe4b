"""The reconciler: makes SQL show where every worker of a pool runs. Level-triggered: each pass compares both sides.

A pass reads the leases and the rows in the order of host and port, a few thousand of each at a time, and lists the
workers for which they differ. An event lists its worker too. Each listed worker is then settled: its lease and its row
are read again, and what still differs is written, fenced, in one short transaction. So an event that is lost, repeated
or late does no harm, and nothing is written by what a pass read a second ago.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from allocator.database.adoption import adoptable, in_batches
from allocator.database.drift import Action, Difference, Kind, of_lease, of_row, shown_by_lease
from allocator.database.errors import DatabaseBusyError, RowRefusedError
from allocator.database.fenced import FencedRows
from allocator.database.upgrade import check_writable, open_layout
from allocator.kernel.sockets import listeners
from allocator.operations import find, listing
from allocator.operations.context import pool_rules

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from allocator.client.blocking import PortAllocator
    from allocator.database.connection import Database
    from allocator.database.layout import Layout
    from allocator.database.leader import Leader
    from allocator.database.rows import Row, RowKey
    from allocator.kernel.sockets import Listener
    from allocator.model.leases import Lease
    from allocator.model.names import WorkerId
    from allocator.model.tables import TableNames
    from allocator.protocol.signatures.inspect import Whereabouts

SETTLED_AT_ONCE = 256
"""Workers in one transaction, and in one call of `find`: some 20 ms, so that nothing waits long behind it."""

ROW_LOCK_S = 0.5
"""How long a row by itself waits for another transaction: the others wait behind it."""

MOST_BUSY = 8
"""This number of rows that others hold are the others' rows; more are a lock on the table, which all have to wait
for."""

WALKED_AT_ONCE = 2_000
"""Pairs between two moments at which a walk lets its caller see to events and renew its leadership."""

log = logging.getLogger("allocator")


@dataclass(slots=True)
class Report:
    """What a pass met and did.

    Attributes:
        leases: How many live leases were read.
        counts: How many differences of each kind were met.
        written: How many rows were written or stopped.
        refused: The workers whose rows the database refused, with the reason.
        pending: The differences that a caller has not taken yet who shows them, each once; None where nobody does.
        settled: The rows without a fence at places that are leased, which are rows of the manual days no longer.
    """

    leases: int = 0
    counts: Counter[Kind] = field(default_factory=Counter)
    written: int = 0
    refused: dict[str, str] = field(default_factory=dict)
    pending: list[Difference] | None = None
    settled: set[RowKey] = field(default_factory=set)

    def add(self, difference: Difference) -> None:
        """Count a difference, and keep it for a caller who shows it."""
        self.counts[difference.kind] += 1
        if self.pending is not None:
            self.pending.append(difference)

    def take(self) -> list[Difference]:
        """Return what was found since this was called last, by host, port and worker."""
        found, self.pending = self.pending or [], []
        return sorted(found, key=lambda one: (one.host or "", one.port or 0, one.worker or ""))


def differences(
    allocator: PortAllocator, database: Database, names: TableNames, *, refreshes: bool = True
) -> Iterator[Difference]:
    """Yield the differences between the table of workers and a pool's leases, in pages; nothing is written.

    First what has a place in the pool, by host and port, then the rows that were written by hand, by worker, then who
    listens on this host without a lease.

    Args:
        allocator: The pool's leases.
        database: Where the rows are.
        names: What the table is called.
        refreshes: See `Reconciler`.

    Raises:
        ConfigurationError: When the table is not there or lacks something.
    """
    layout = open_layout(database, names)
    report = Report(pending=[])
    for _ in Reconciler(allocator, database, layout, leader=None, refreshes=refreshes).walk(report):
        yield from report.take()


@dataclass(slots=True)
class Settlement:
    """What is to be written for a batch of workers."""

    leases: list[tuple[RowKey, Lease]] = field(default_factory=list)
    crowded: list[tuple[RowKey, Lease]] = field(default_factory=list)
    refreshed: list[tuple[RowKey, Lease]] = field(default_factory=list)
    stops: list[Difference] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.leases or self.refreshed or self.stops)


class Reconciler:
    """Compares one pool with its rows, and writes the differences when it leads.

    Args:
        allocator: The pool's leases.
        database: Where the rows are.
        layout: The tables there.
        leader: Its candidacy; None to write nothing at all.
        refreshes: Whether `lease_expires_at` is written again once it has passed under a live lease.
    """

    def __init__(
        self,
        allocator: PortAllocator,
        database: Database,
        layout: Layout,
        *,
        leader: Leader | None,
        refreshes: bool = True,
    ) -> None:
        self.allocator = allocator
        self.database = database
        self.rows = FencedRows(layout, allocator.session.pool)
        self.leader = leader
        self._refreshes = refreshes
        self._clock_offset = 0.0
        self._complained: dict[str, str] = {}

    def now(self) -> float:
        """Return the time by Redis's clock, in Unix seconds, as of the last pass."""
        return time.monotonic() + self._clock_offset

    # -- a pass --

    def walk(self, report: Report) -> Iterator[None]:
        """Make one pass over everything; yields now and then, so that the caller can see to what is urgent."""
        self.allocator.run(pool_rules(self.allocator.session.context, self.rows.pool, fresh=True))
        self._clock_offset = self.allocator.store.server_time() - time.monotonic()
        here: set[int] = set()
        nominated: dict[WorkerId | RowKey, None] = {}
        pairs = self._merged(self._leases(report, here), self.rows.in_order(self.database))
        for number, (lease, row) in enumerate(pairs):
            if not self._agree(lease, row):
                nominated |= dict.fromkeys(self._nominees(lease, row))
            if len(nominated) >= SETTLED_AT_ONCE or number % WALKED_AT_ONCE == WALKED_AT_ONCE - 1:
                self.settle(list(nominated), report)
                nominated.clear()
                self._go_on_leading()
                yield
        self.settle(list(nominated), report)
        yield
        for _ in self._strangers(report, here):
            self._go_on_leading()
            yield

    def run(self, report: Report) -> Report:
        """Make one whole pass and return its report."""
        for _ in self.walk(report):
            pass
        return report

    def _leases(self, report: Report, here: set[int]) -> Iterator[Lease]:
        pool, host = self.rows.pool, self.allocator.session.host
        for namespace in self.allocator.run(listing.namespaces(pool)):
            views = self.allocator.run(listing.ports(pool, namespace))
            found = sorted((view.lease for view in views if view.lease), key=lambda one: (one.host, one.port))
            report.leases += len(found)
            here.update(lease.port for lease in found if lease.host == host)
            yield from found

    @staticmethod
    def _merged(leases: Iterator[Lease], rows: Iterator[Row]) -> Iterator[tuple[Lease | None, Row | None]]:
        """Yield leases and rows in the order of host and port, as a pair where both have the same."""
        lease, row = next(leases, None), next(rows, None)
        while lease or row:
            left = (lease.host, lease.port) if lease else None
            right = row.address if row else None
            if left == right:
                yield lease, row
                lease, row = next(leases, None), next(rows, None)
            elif right is None or (left is not None and left < right):
                yield lease, None
                lease = next(leases, None)
            else:
                yield None, row
                row = next(rows, None)

    def _agree(self, lease: Lease | None, row: Row | None) -> bool:
        if lease is None or row is None or row.fence != lease.fence or self.rows.key_of(lease.worker) != row.key:
            return False
        if shown_by_lease(lease, row) is not None:
            return False
        return not self._is_overdue(row)

    def _is_overdue(self, row: Row) -> bool:
        follows = self._refreshes and self.rows.layout.has("lease_expires_at")
        return follows and (row.expires_at is None or row.expires_at <= self.now())

    @staticmethod
    def _nominees(lease: Lease | None, row: Row | None) -> Iterator[WorkerId | RowKey]:
        if lease:
            yield lease.worker
        if row and row.fence is not None and (lease is None or row.key != (lease.org, lease.plugin, lease.instance)):
            yield row.key

    def _strangers(self, report: Report, here: set[int]) -> Iterator[None]:
        """Look at the rows that were written by hand, and at this host's listeners that have no lease; as `walk`."""
        pool = self.allocator.session.context.rules[self.rows.pool]
        host = self.allocator.session.host
        listening = [one for one in listeners(pool.first, pool.last) if one.port not in here]
        adopted = adoptable(lambda: self.rows.unclaimed(self.database), listening, host)
        for rows in in_batches(self.rows.unclaimed(self.database)):
            known = self._find([row.key.worker for row in rows])
            for row in rows:
                self._unclaimed(row, known, adopted.get(row.key), report)
            yield
        theirs = {one.port for one in adopted.values()}
        for port, listener in {one.port: one for one in listening if one.port not in theirs}.items():
            detail = f"{described(listener)} listens without a lease"
            report.add(Difference(Kind.UNKNOWN_LISTENER, Action.NONE, None, host, port, detail))
        yield

    def _unclaimed(
        self, row: Row, known: dict[WorkerId, Whereabouts], listener: Listener | None, report: Report
    ) -> None:
        """Report a row that was written by hand, with who listens on its port where it is adopted."""
        whereabouts = known.get(row.key.worker) if row.key.worker else None
        if (whereabouts is not None and whereabouts.lease is not None) or row.key in report.settled:
            return  # settled already: by its worker's lease, or by that of its port
        difference = of_row(row, whereabouts, None)
        if difference is not None and listener is not None:
            detail = f"{difference.detail}; {described(listener)} listens on its port"
            address = (self.allocator.session.host, row.port)
            difference = Difference(Kind.UNKNOWN_ROW, Action.ADOPT, difference.worker, *address, detail, key=row.key)
        if difference is not None:
            report.add(difference)

    # -- settling --

    def settle(self, nominated: Sequence[WorkerId | RowKey], report: Report) -> None:
        """Read both sides again for these workers, and write what differs."""
        for start in range(0, len(nominated), SETTLED_AT_ONCE):
            todo = self._compared(nominated[start : start + SETTLED_AT_ONCE], report)
            if todo and self.leader is not None:
                report.written += self._write(todo, report)

    def _find(self, workers: Iterable[WorkerId | None]) -> dict[WorkerId, Whereabouts]:
        asked = list(dict.fromkeys(worker for worker in workers if worker is not None))
        pool = self.allocator.run(pool_rules(self.allocator.session.context, self.rows.pool))
        return dict(zip(asked, self.allocator.run(find.find(pool, asked)), strict=True)) if asked else {}

    def _compared(self, nominated: Sequence[WorkerId | RowKey], report: Report) -> Settlement:
        by_key: dict[RowKey, WorkerId | None] = {}
        by_lease: set[RowKey] = set()
        without_key: list[WorkerId] = []
        for one in nominated:
            if isinstance(one, tuple):
                by_key.setdefault(one, one.worker)
            elif (key := self.rows.key_of(one)) is not None:
                by_key[key] = one
                by_lease.add(key)
            else:
                without_key.append(one)
        known = self._find([*by_key.values(), *without_key])
        leases = {key: known[worker].lease for key, worker in by_key.items() if worker and known[worker].lease}
        with self.database.reading() as connection:
            rows = self.rows.of_workers(connection, list(by_key))
            unknown = self.rows.unknown_names(connection, leases)
            standing = self.rows.at_addresses(connection, [(one.host, one.port) for one in leases.values() if one])
        tenants = {(lease.host, lease.port): lease for lease in leases.values() if lease}
        others = {row.key: row for row in standing.values() if row.key not in by_key}
        rows |= others
        by_key |= {key: key.worker for key in others}
        known |= self._find(key.worker for key in others)
        elsewhere = set() if report.pending is None else self._leased_elsewhere(by_key, by_lease, known)
        todo = Settlement()
        for key, why_not in unknown.items():
            lease = leases[key]
            if lease and key not in elsewhere and (difference := of_lease(lease, key, None, why_not)):
                self._refuse(difference, report)
            del by_key[key]
        for key, worker in by_key.items():
            if key in elsewhere:
                continue
            whereabouts = known.get(worker) if worker else None
            self._decide(key, whereabouts, rows.get(key), tenants, standing, todo, report)
        for worker in without_key:
            lease = known[worker].lease
            if lease and (difference := of_lease(lease, None, None)):
                self._refuse(difference, report)
        return todo

    @staticmethod
    def _leased_elsewhere(
        by_key: dict[RowKey, WorkerId | None], by_lease: set[RowKey], known: dict[WorkerId, Whereabouts]
    ) -> set[RowKey]:
        """Return the workers whose row and lease have different hosts or ports, where the walk shows both."""
        found = ((key, known.get(worker)) for key, worker in by_key.items() if worker and key not in by_lease)
        return {key for key, whereabouts in found if whereabouts and whereabouts.lease}

    def _decide(
        self,
        key: RowKey,
        known: Whereabouts | None,
        row: Row | None,
        tenants: dict[tuple[str, int], Lease],
        standing: dict[tuple[str, int], Row],
        todo: Settlement,
        report: Report,
    ) -> None:
        lease = known.lease if known else None
        if lease is not None:
            difference = of_lease(lease, key, row)
            if difference is None and row is not None and self._is_overdue(row):
                todo.refreshed.append((key, lease))
            if difference and difference.action is Action.WRITE:
                todo.leases.append((key, lease))
                other = standing.get((lease.host, lease.port))
                if other is not None and other.key != key:
                    todo.crowded.append((key, lease))
        else:
            difference = of_row(row, known, tenants.get(row.address)) if row else None
            if row and row.fence is None:
                report.settled.add(key)
            if difference and difference.stop:
                todo.stops.append(difference)
        if difference:
            report.add(difference)

    # -- writing --

    def _go_on_leading(self) -> None:
        if self.leader is not None:
            self.leader.renew()

    def _write(self, todo: Settlement, report: Report) -> int:
        try:
            return self._written(todo)
        except RowRefusedError as error:
            if error.may_be_the_table:
                check_writable(self.database, self.rows.layout.names, leads=True)
        except DatabaseBusyError:
            log.debug("a row of %d is held by another transaction", len(todo.leases) + len(todo.stops))
        return self._written_one_by_one(todo, report)

    def _written_one_by_one(self, todo: Settlement, report: Report) -> int:
        """Write each row in its own transaction, so that a failure affects one row only."""
        written = busy = 0
        for part in self._apart(todo):
            try:
                written += self._written(part, lock_s=ROW_LOCK_S)
            except RowRefusedError as error:
                self._complain(part, error.why, report)
            except DatabaseBusyError:
                busy += 1
                if busy > MOST_BUSY:
                    raise
                self._complain(part, "another transaction holds it; it is written at the next pass", report)
        return written

    def _written(self, todo: Settlement, *, lock_s: float | None = None) -> int:
        assert self.leader is not None  # noqa: S101  # its caller looked
        fence, now = self.leader.renew(), self.now()
        stops = [one.stop for one in todo.stops if one.stop]
        with self.database.writing(lock_s=lock_s) as connection:
            self.rows.lead(connection, fence=fence, holder=self.leader.holder, now=now)
            written = self.rows.stop(connection, stops, now)
            written += self.rows.make_way(connection, todo.crowded, now, unfenced=True)
            written += self.rows.upsert(connection, todo.leases, now, same_fence=True)
            self.rows.refresh(connection, todo.refreshed)
            self.rows.check_written(connection, todo.leases, stops)
        return written

    @staticmethod
    def _apart(todo: Settlement) -> Iterator[Settlement]:
        """Yield each row by itself, so that one that is refused does not keep the others from being written."""
        for one in todo.stops:
            yield Settlement(stops=[one])
        for pair in todo.leases:
            yield Settlement(leases=[pair], crowded=[pair] if pair in todo.crowded else [])
        for pair in todo.refreshed:
            yield Settlement(refreshed=[pair])

    def _complain(self, part: Settlement, why: str, report: Report) -> None:
        worker = str((part.leases or part.refreshed)[0][1].worker) if part.leases or part.refreshed else None
        self._refused(worker or str(part.stops[0].worker), why, report)

    def _refuse(self, difference: Difference, report: Report) -> None:
        """Report a worker that can have no row."""
        report.add(difference)
        self._refused(str(difference.worker), difference.detail, report)

    def _refused(self, worker: str, why: str, report: Report) -> None:
        report.refused[worker] = why
        if self._complained.get(worker) != why:
            self._complained[worker] = why
            log.warning("the database refuses the row of %s: %s", worker, why)


def described(listener: Listener) -> str:
    """Return who listens, as text."""
    who = listener.command or "a process"
    return f"{who} (pid {listener.pid})" if listener.pid else f"{who} of another user or namespace"
