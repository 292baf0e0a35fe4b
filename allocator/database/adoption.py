"""Taking over what runs: rows of the manual days, whose workers listen but hold no lease.

The rules of this file: a lease is made only for a port that is bound on this host, by a process that is seen, for the
one row that can mean it; nothing is stopped that was not looked at on the host where it would run. A row that names a
fence was a lease once: its holder re-asserts it, and to claim its port in its place would take it away.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

from allocator.client.lease_files import FileAnswers
from allocator.database.errors import RowRefusedError
from allocator.database.fenced import Stop
from allocator.database.rows import NO_INSTANCE
from allocator.kernel.processes import command_arguments
from allocator.kernel.socket_tables import listening_ports
from allocator.kernel.sockets import listeners
from allocator.model.errors import InvalidInputError
from allocator.model.states import LeaseState
from allocator.model.tables import STOPPED
from allocator.operations.attempt import ClaimRequest
from allocator.operations.claim import claim
from allocator.operations.find import find

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from allocator.client.blocking import PortAllocator
    from allocator.client.lease_files import LeaseFiles
    from allocator.database.connection import Database
    from allocator.database.fenced import FencedRows
    from allocator.database.rows import Row, RowKey
    from allocator.kernel.sockets import Listener
    from allocator.model.leases import Lease
    from allocator.model.names import WorkerId
    from allocator.protocol.signatures.inspect import Whereabouts

BATCH = 256
"""Rows in one call of `find`, or in one transaction."""

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


@dataclass(slots=True)
class Rivals:
    """The manual rows of one bound port: how many there are, and whom the command line of its process names."""

    count: int = 0
    meant: list[RowKey] = field(default_factory=list)


def rivals_by_port(rows: Iterable[Row], listening: Mapping[int, Listener], host: str) -> dict[int, Rivals]:
    """Return what is to be known of the manual rows of each port that is bound here; the others are not kept."""
    found: dict[int, Rivals] = {}
    arguments: dict[int, list[str]] = {}
    for row in rows:
        listener = listening.get(row.port or 0)
        if listener is None or not is_manual(row, host):
            continue
        rivals = found.setdefault(listener.port, Rivals())
        rivals.count += 1
        if listener.pid is not None and listener.port not in arguments:
            arguments[listener.port] = list(command_arguments(listener.pid))
        if len(rivals.meant) < 2 and any(
            _names(argument, row.key.org) for argument in arguments.get(listener.port, ())
        ):
            rivals.meant.append(row.key)
    return found


def by_port(listening: Iterable[Listener]) -> dict[int, Listener]:
    """Return one listener for each port, one whose process is seen where there is one."""
    found: dict[int, Listener] = {}
    for one in listening:
        if one.port not in found or found[one.port].pid is None:
            found[one.port] = one
    return found


def candidate(row: Row, rivals: Mapping[int, Rivals], listening: Mapping[int, Listener]) -> Candidate:
    """Return the message about a row that another program wrote.

    Args:
        row: The row.
        rivals: The manual rows of each port.
        listening: The listeners of this host whose ports are not leased.
    """
    listener = listening.get(row.port or 0)
    return Candidate(row, listener, _why_not(row, rivals.get(row.port or 0, Rivals()), listener))


def _why_not(row: Row, rivals: Rivals, listener: Listener | None) -> str | None:  # noqa: PLR0911  # a case a line
    if row.key.instance == NO_INSTANCE:
        return "its instance is NULL, so that it belongs to no worker; give it one"
    if row.key.worker is None:
        return "its names cannot be those of a lease"
    if listener is None:
        return "nobody listens on its port here"
    if listener.pid is None:
        return "the process that listens on its port cannot be seen by this user; run as its user"
    if rivals.count == 1 or rivals.meant == [row.key]:
        return None
    if len(rivals.meant) == 1:
        return f"the process on its port is of {rivals.meant[0]}"
    return f"{rivals.count} rows have its port and no host; adopt the right one with --port, --org and --plugin"


def _names(argument: str, org: str) -> bool:
    return argument == org or argument.endswith(f"={org}")


def adoptable(rows: Callable[[], Iterable[Row]], listening: Iterable[Listener], host: str) -> dict[RowKey, Listener]:
    """Return the rows that are adopted on this host, each with its listener; they are read twice."""
    bound = by_port(listening)
    rivals = rivals_by_port(rows(), bound, host) if bound else {}
    found = (candidate(row, rivals, bound) for row in (rows() if rivals else ()) if is_manual(row, host))
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
        holder=allocator.session.process_fields(pid=pid),
    )
    (lease,) = allocator.run(claim(allocator.session.context, request), FileAnswers(files))
    return lease


def manual_rows(allocator: PortAllocator, database: Database, rows: FencedRows) -> Iterator[Candidate]:
    """Yield the rows of the manual days that may be of this host, each with who listens on its port.

    They are read a few thousand at a time, and twice: first those whose ports are bound here, to see which are rivals.
    """
    pool, host = allocator.pool(), allocator.session.host
    leased = {lease.port for lease in allocator.leases(host=host)}
    bound = by_port(one for one in listeners(pool.first, pool.last) if one.port not in leased)
    here = (row for row in rows.unclaimed(database) if row.port in bound)
    rivals = rivals_by_port(_without_lease(allocator, here), bound, host) if bound else {}
    manual = (row for row in rows.unclaimed(database) if is_manual(row, host))
    for row in _without_lease(allocator, manual):
        yield candidate(row, rivals, bound)


def _without_lease(allocator: PortAllocator, rows: Iterable[Row]) -> Iterator[Row]:
    """Yield the rows whose workers have no lease."""
    for some in in_batches(rows):
        known = _whereabouts(allocator, some)
        yield from (row for row in some if not (one := known.get(row.key)) or one.lease is None)


def in_batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Yield rows in lists that fit into one call of `find`, or into one transaction."""
    remaining = iter(rows)
    while some := list(islice(remaining, BATCH)):
        yield some


def unexplained_rows(allocator: PortAllocator, database: Database, rows: FencedRows) -> list[Row]:
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


def stop_unbound(
    allocator: PortAllocator, database: Database, rows: FencedRows, unbound: list[Row]
) -> dict[RowKey, str]:
    """Set the rows that an operator gave up to stopped; return those that were not changed, and why.

    All of them in one transaction; where that does not stop each, one by one.
    """
    now = allocator.store.server_time()
    stops = [Stop(row.key, row.fence, STOPPED, "nobody listened on its port") for row in unbound]
    with contextlib.suppress(RowRefusedError), database.writing() as connection:
        if rows.stop(connection, stops, now) == len(stops):
            return {}
    tried = {stop.key: _stop(database, rows, stop, now) for stop in stops}
    return {key: why_not for key, why_not in tried.items() if why_not is not None}


def _stop(database: Database, rows: FencedRows, stop: Stop, now: float) -> str | None:
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
    return "the table drops the change without an error; fix its triggers and rules"


def write_adopted(database: Database, rows: FencedRows, key: RowKey, lease: Lease) -> str | None:
    """Write the row of an adopted lease; return why it is not written, or None."""
    now = lease.expires_at - lease.ttl_ms / 1_000
    try:
        with database.writing() as connection:
            written = rows.upsert(connection, [(key, lease)], now, same_fence=False)
    except RowRefusedError as error:
        return error.why
    return None if written else "it was changed meanwhile, or the table drops the change without an error"


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
