"""Taking over what runs: rows of the manual days, whose workers listen but hold no lease.

The rules of this file: a lease is made only for a port that is bound on this host, by a process that is seen, for the
one row that can mean it; nothing is stopped that was not looked at on the host where it would run. A row that names a
fence was a lease once: its holder re-asserts it, and to claim its port in its place would take it away.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from allocator.client.lease_files import FileAnswers
from allocator.database.errors import RowRefusedError
from allocator.database.rows import NO_INSTANCE, Stop
from allocator.kernel.processes import command_words
from allocator.kernel.sockets import listeners, listening_ports
from allocator.model.errors import InvalidInputError
from allocator.model.states import LeaseState
from allocator.model.tables import STOPPED
from allocator.operations.attempt import ClaimRequest
from allocator.operations.claim import claim
from allocator.operations.find import find

if TYPE_CHECKING:
    from collections.abc import Iterable

    from allocator.client.blocking import PortAllocator
    from allocator.client.lease_files import LeaseFiles
    from allocator.database.connection import Database
    from allocator.database.rows import Row, RowKey, Rows
    from allocator.kernel.sockets import Listener
    from allocator.model.leases import Lease
    from allocator.model.names import WorkerId
    from allocator.protocol.signatures.inspect import Whereabouts

ADOPTED_STATES = frozenset({LeaseState.STARTING, LeaseState.READY})


@dataclass(frozen=True, slots=True)
class Candidate:
    """A row of the manual days that may be of this host.

    Attributes:
        row: The row.
        listener: Who listens on its port here, or None when nobody does.
        why_not: Why it is not adopted, or None.
    """

    row: Row
    listener: Listener | None
    why_not: str | None


def is_manual(row: Row, host: str) -> bool:
    """Return whether a row was written by hand and may be of this host."""
    return row.state in ADOPTED_STATES and row.fence is None and row.host in {None, host} and row.port is not None


def candidates(rows: Iterable[Row], listening: Iterable[Listener], host: str) -> list[Candidate]:
    """Return what is to be reported of each manual row.

    Args:
        rows: Live rows of the pool.
        listening: The listeners of this host whose ports are not leased.
        host: This host.
    """
    by_port: dict[int, Listener] = {}
    for one in listening:
        if one.port not in by_port or by_port[one.port].pid is None:
            by_port[one.port] = one
    manual = [row for row in rows if is_manual(row, host)]
    found = []
    for row in manual:
        listener = by_port.get(row.port or 0)
        rivals = [other for other in manual if other.port == row.port]
        found.append(Candidate(row, listener, _why_not(row, rivals, listener)))
    return found


def _why_not(row: Row, rivals: list[Row], listener: Listener | None) -> str | None:  # noqa: PLR0911  # a case a line
    if row.key.instance == NO_INSTANCE:
        return "its instance is NULL, so that it is no worker's row; give it one"
    if row.key.worker is None:
        return "its names cannot be those of a lease"
    if listener is None:
        return "nobody listens on its port here"
    if listener.pid is None:
        return "the process that listens on its port cannot be seen by this user; run as its user"
    if len(rivals) == 1:
        return None
    words = command_words(listener.pid)
    meant = [other for other in rivals if any(_names(word, other.key.org) for word in words)]
    if meant == [row]:
        return None
    if len(meant) == 1:
        return f"the process on its port is of {meant[0].key}"
    return f"{len(rivals)} rows have its port and no host; adopt the right one with --port, --org and --plugin"


def _names(word: str, org: str) -> bool:
    return word == org or word.endswith(f"={org}")


def adoptable(rows: Iterable[Row], listening: Iterable[Listener], host: str) -> dict[RowKey, Listener]:
    """Return the rows that are adopted on this host, each with its listener."""
    found = candidates(rows, listening, host)
    return {one.row.key: one.listener for one in found if one.listener and one.why_not is None}


def adopt(
    allocator: PortAllocator,
    files: LeaseFiles,
    worker: WorkerId,
    port: int,
    pid: int,
    *,
    ttl_ms: int | None = None,
    state: LeaseState = LeaseState.READY,
) -> Lease:
    """Make a lease for a port that its worker has bound already, bound to its process; keep its token in a file.

    Args:
        allocator: The pool's leases on this host.
        files: Where the agent of this host finds the leases that it renews.
        worker: Who the lease is for.
        port: The port that it listens on.
        pid: The process that listens.
        ttl_ms: How long the lease lives without a heartbeat; None for the pool's TTL.
        state: The state that it starts in.

    Raises:
        HeldError: When the port or the worker has a lease already.
        InvalidInputError: When the port is not of the pool, or the process has ended.
    """
    request = ClaimRequest(
        pool=allocator.session.pool,
        worker=worker,
        port=port,
        ttl_ms=ttl_ms,
        state=state,
        bound_already=True,
        holder=allocator.session.process_words(pid=pid),
    )
    (lease,) = allocator.run(claim(allocator.session.context, request), FileAnswers(files))
    return lease


def manual_rows(allocator: PortAllocator, database: Database, rows: Rows) -> list[Candidate]:
    """Return the rows of the manual days that may be of this host, each with who listens on its port."""
    pool, host = allocator.pool(), allocator.session.host
    with database.reading() as connection:
        found = rows.unclaimed(connection)
    leased = {lease.port for lease in allocator.leases(host=host)}
    listening = [one for one in listeners(pool.first, pool.last) if one.port not in leased]
    known = _whereabouts(allocator, found)
    return candidates([row for row in found if not (one := known.get(row.key)) or one.lease is None], listening, host)


def unexplained_rows(allocator: PortAllocator, database: Database, rows: Rows) -> list[Row]:
    """Return the live rows of this host whose lease Redis knows nothing of, long after its time, on a free port."""
    pool, host = allocator.pool(), allocator.session.host
    with database.reading() as connection:
        found = rows.on_host(connection, host)
    bound = listening_ports(pool.first, pool.last)
    known, now = _whereabouts(allocator, found), allocator.store.server_time()
    return [
        row
        for row in found
        if row.port not in bound
        and (row.expires_at is None or row.expires_at + pool.grace_ms / 1_000 < now)
        and (row.key not in known or (known[row.key].lease is None and not known[row.key].explains_end_of(row.fence)))
    ]


def _whereabouts(allocator: PortAllocator, rows: Iterable[Row]) -> dict[RowKey, Whereabouts]:
    workers = {row.key: worker for row in rows if (worker := row.key.worker)}
    if not workers:
        return {}
    found = allocator.run(find(allocator.pool(), list(workers.values())))
    return dict(zip(workers, found, strict=True))


def stop_unbound(allocator: PortAllocator, database: Database, rows: Rows, unbound: Iterable[Row]) -> dict[RowKey, str]:
    """Set rows to stopped of which a person states that nothing runs there; return those that were not, and why."""
    now = allocator.store.server_time()
    kept = {}
    for row in unbound:
        why_not = _stop(database, rows, Stop(row.key, row.fence, STOPPED, "nobody listened on its port"), now)
        if why_not is not None:
            kept[row.key] = why_not
    return kept


def _stop(database: Database, rows: Rows, stop: Stop, now: float) -> str | None:
    try:
        with database.writing() as connection:
            if rows.stop(connection, [stop], now):
                return None
            row = rows.of_workers(connection, [stop.key]).get(stop.key)
    except RowRefusedError as error:
        return f"the database refuses it ({error.why})"
    if stop.key.instance == NO_INSTANCE:
        return f"its {rows.layout.column('instance').name} is NULL, so that no statement finds it"
    if row is None or not row.is_live or row.fence != stop.fence:
        return "it was changed meanwhile"
    return "the table drops the change without a word; mend its triggers and rules"


def write_adopted(database: Database, rows: Rows, key: RowKey, lease: Lease) -> str | None:
    """Write the row of an adopted lease; return why it is not written, or None."""
    now = lease.expires_at - lease.ttl_ms / 1_000
    try:
        with database.writing() as connection:
            written = rows.upsert(connection, [(key, lease)], now, same_fence=False)
    except RowRefusedError as error:
        return error.why
    return None if written else "it was changed meanwhile, or the table drops the change without a word"


def adopt_row(
    allocator: PortAllocator, files: LeaseFiles, row: Row, listener: Listener, *, ttl_ms: int | None = None
) -> Lease:
    """Make a lease for a manual row; as `adopt` else.

    Raises:
        InvalidInputError: When the row or its listener cannot be used for that.
    """
    worker = row.key.worker
    if worker is None or row.port is None or listener.pid is None:
        raise InvalidInputError(f"the row of {row.key} cannot be adopted; give --port, --org and --plugin")
    return adopt(allocator, files, worker, row.port, listener.pid, ttl_ms=ttl_ms, state=LeaseState(row.state))
