"""Rows of the table of workers: reading them in key order or by worker, and the fenced writes.

The rules of this file: a write takes effect only on a row whose fence is not newer than its own, decided by the
database within the statement; values are bound, never written into a statement; a row of another pool is never named.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

import sqlalchemy as sa

from allocator.database.errors import RowRefusedError, reading_rows
from allocator.database.layout import WORKER_COLUMNS
from allocator.model.errors import InvalidInputError
from allocator.model.names import WorkerId
from allocator.model.tables import COLUMNS, LIVE_ROW_STATES, STOPPED

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqlalchemy import Connection

    from allocator.database.connection import Database
    from allocator.database.layout import Layout
    from allocator.model.leases import Lease

READ_AT_ONCE = 2_000
"""Rows in memory while a table is walked."""

MAX_FENCE = 2**53 - 1
"""The largest that the scripts count exactly; one beyond it would keep all later ones from growing."""

_WRITTEN_ONLY = {"pool", "created_at", "updated_at", "stopped_at"}
_NEVER_REPLACED = {"pool", "organization_id", "plugin_id", "instance", "created_at"}
_READ = tuple(column for column in COLUMNS if column not in _WRITTEN_ONLY)
_FOLLOWS_LEASE = tuple(column for column in COLUMNS if column not in _NEVER_REPLACED)
"""What an upsert replaces; `created_at` and what others added stay."""


NO_INSTANCE = -1
"""The instance of a row whose column is NULL: no lease has it, and no statement meets it as if it were number 0."""


class RowKey(NamedTuple):
    """Whose row it is, within a pool, in the database's own spelling."""

    org: str
    plugin: str
    instance: int

    @property
    def worker(self) -> WorkerId | None:
        """The worker, or None when a lease could not have these names."""
        try:
            return WorkerId(self.org, self.plugin, self.instance)
        except InvalidInputError:
            return None

    def __str__(self) -> str:
        return f"{self.org}/{self.plugin}#{'NULL' if self.instance == NO_INSTANCE else self.instance}"


@dataclass(frozen=True, slots=True)
class Row:
    """One row, as far as portlease reads it; times in Unix seconds."""

    key: RowKey
    host: str | None
    port: int | None
    state: str
    fence: int | None
    pid: int | None
    expires_at: float | None
    restart_count: int
    last_error: str | None

    @property
    def is_live(self) -> bool:
        """Whether its state says that the worker has its port."""
        return self.state in LIVE_ROW_STATES

    @property
    def place(self) -> tuple[str, int]:
        """Host and port of a row that has both."""
        return self.host or "", self.port or 0


class Stop(NamedTuple):
    """The end of a row: its key, the fence up to which that holds, its last state and why."""

    key: RowKey
    fence: int | None
    state: str
    why: str | None


class DeposedError(Exception):
    """Another reconciler leads since: nothing was written."""


@dataclass(frozen=True)
class Rows:
    """The rows of one pool.

    Attributes:
        layout: The tables.
        pool: The pool.
    """

    layout: Layout
    pool: str

    @cached_property
    def _select(self) -> sa.Select[Any]:
        return sa.select(*(self.layout.column(name) for name in _READ)).where(self.layout.column("pool") == self.pool)

    @cached_property
    def _is_live(self) -> sa.ColumnElement[bool]:
        return self.layout.column("runtime_state").in_(LIVE_ROW_STATES)

    @cached_property
    def _was_live(self) -> sa.ColumnElement[bool]:
        """The same for a statement that is run with many sets of values, which cannot have lists among them."""
        return sa.or_(*(self.layout.column("runtime_state") == state for state in LIVE_ROW_STATES))

    @cached_property
    def _has_uuids(self) -> bool:
        return isinstance(self.layout.column("organization_id").type, sa.Uuid)

    def key_of(self, worker: WorkerId) -> RowKey | None:
        """Return the key of a worker's row, or None when the column cannot hold its organisation."""
        if not self._has_uuids:
            return RowKey(worker.org, worker.plugin, worker.instance)
        try:
            return RowKey(str(UUID(worker.org)), worker.plugin, worker.instance)
        except ValueError:
            return None

    # -- reading --

    def in_order(self, database: Database) -> Iterator[Row]:
        """Yield the live rows that have a place, by host and port.

        A few thousand are read at a time, in a transaction of its own that has ended when they are given out: whoever
        walks may take as long as it likes, and write. So a row that moves meanwhile may be missed or come twice.
        """
        after: sa.Row[Any] | None = None
        while True:
            with database.reading() as connection, reading_rows(self.layout.names):
                page = connection.execute(self._page(after, is_sqlite=database.is_sqlite)).all()
            for found in page:
                row = _row(found)
                if row.host is not None and row.port is not None:
                    yield row
            if len(page) < READ_AT_ONCE:
                return
            after = page[-1]

    def _page(self, after: sa.Row[Any] | None, *, is_sqlite: bool) -> sa.Select[Any]:
        """Return the query for the next rows; by bytes, as Python sorts, and in one order for rows of one place."""
        host, port = self.layout.column("host"), self.layout.column("port")
        order = [sa.collate(host, "BINARY" if is_sqlite else "C"), port, *self.layout.worker_key[1:]]
        query = self._select.where(self._is_live, host.is_not(None), port.is_not(None)).order_by(*order)
        if after is not None:
            values = [after[_READ.index(name)] for name in ("host", "port", *WORKER_COLUMNS[1:])]
            query = query.where(
                sa.tuple_(*order)
                > sa.tuple_(*(sa.literal(value, column.type) for value, column in zip(values, order, strict=True)))
            )
        return query.limit(READ_AT_ONCE)

    def unclaimed(self, connection: Connection) -> list[Row]:
        """Return the live rows that lack a host, a port or a fence, so that they were written by hand, by port."""
        host, port, fence = (self.layout.column(name) for name in ("host", "port", "fence"))
        by_hand = sa.or_(host.is_(None), port.is_(None), fence.is_(None))
        if connection.dialect.name == "sqlite":  # whose columns hold what they are given
            types = ((host, "text"), (port, "integer"), (fence, "integer"))
            by_hand = sa.or_(by_hand, *(sa.func.typeof(column) != kind for column, kind in types))
        query = self._select.where(self._is_live, by_hand).order_by(port)
        return list(self._read(connection, query))

    def on_host(self, connection: Connection, host_name: str) -> list[Row]:
        """Return the live rows of a host that have a fence, by port."""
        host, port, fence = (self.layout.column(name) for name in ("host", "port", "fence"))
        query = self._select.where(self._is_live, host == host_name, fence.is_not(None)).order_by(port)
        return list(self._read(connection, query))

    def of_workers(self, connection: Connection, keys: Sequence[RowKey]) -> dict[RowKey, Row]:
        """Return the rows of workers, as far as they have one."""
        if not keys:
            return {}
        columns = [self.layout.column(name) for name in ("organization_id", "plugin_id", "instance")]
        query = self._select.where(sa.tuple_(*columns).in_([tuple(key) for key in keys]))
        return {row.key: row for row in self._read(connection, query)}

    def at_places(self, connection: Connection, places: Sequence[tuple[str, int]]) -> dict[tuple[str, int], Row]:
        """Return the live rows at places (host and port)."""
        if not places:
            return {}
        at = sa.tuple_(self.layout.column("host"), self.layout.column("port"))
        query = self._select.where(self._is_live, at.in_(list(places)))
        return {row.place: row for row in self._read(connection, query)}

    def _read(self, connection: Connection, query: sa.Select[Any]) -> Iterator[Row]:
        with reading_rows(self.layout.names):
            for found in connection.execute(query):
                yield _row(found)

    def leader_fence(self, connection: Connection) -> int:
        """Return the fence of the last leader that wrote, 0 when there was none or it can be no leader's."""
        leaders = self.layout.leaders
        query = sa.select(leaders.c.fence).where(leaders.c.pool == self.pool)
        fence = connection.execute(query).scalar_one_or_none() or 0
        return fence if fence <= MAX_FENCE else 0

    def check_written(
        self, connection: Connection, leases: Sequence[tuple[RowKey, Lease]], stops: Sequence[Stop] = ()
    ) -> None:
        """Read back what was written: triggers and rules may have made something different of it.

        Raises:
            RowRefusedError: When they did, for the first such row.
        """
        rows = self.of_workers(connection, [key for key, _ in leases] + [one.key for one in stops])
        for key, lease in leases:
            row = rows.get(key)
            if row is None or (row.fence or 0) < lease.fence:
                raise RowRefusedError("it drops the row without an error; see its triggers and rules")
            if row.fence == lease.fence and (made := _made_of(lease, row)):
                raise RowRefusedError(f"it makes {made} of what is written; see its triggers and rules")
        for stop in stops:
            row = rows.get(stop.key)
            if row is not None and row.is_live and (row.fence or 0) <= (stop.fence or 0):
                raise RowRefusedError("it drops the change without an error; see its triggers and rules")

    # -- writing --

    def lead(self, connection: Connection, *, fence: int, holder: str, now: float) -> None:
        """Enter that this leader writes, at the beginning of its transaction.

        Raises:
            DeposedError: When a newer leader wrote before.
        """
        leaders = self.layout.leaders
        entry = self._insert(connection, leaders).values(pool=self.pool, fence=fence, holder=holder, updated_at=now)
        entry = entry.on_conflict_do_update(
            index_elements=[leaders.c.pool],
            set_={name: entry.excluded[name] for name in ("fence", "holder", "updated_at")},
            where=sa.or_(leaders.c.fence <= entry.excluded.fence, leaders.c.fence > MAX_FENCE),
        )
        if self._changed(connection, entry) == 0:
            raise DeposedError

    def upsert(
        self, connection: Connection, leases: Sequence[tuple[RowKey, Lease]], now: float, *, same_fence: bool
    ) -> int:
        """Write the rows of live leases; a row with a newer fence stays as it is.

        Args:
            connection: In a transaction.
            leases: The leases with the keys of their rows.
            now: The time, in Unix seconds by Redis's clock.
            same_fence: Whether a row of the very same fence is replaced; only a leader may.

        Returns:
            How many rows were written.

        Raises:
            RowRefusedError: When a constraint or trigger refuses one of them; none is written then.
        """
        if not leases:
            return 0
        runners, fence = self.layout.runners, self.layout.column("fence")
        entry = self._insert(connection, runners)
        newer = fence <= entry.excluded.fence if same_fence else fence < entry.excluded.fence
        entry = entry.on_conflict_do_update(
            index_elements=list(self.layout.worker_key),
            set_={self.layout.column(name).name: entry.excluded[name] for name in _FOLLOWS_LEASE},
            where=sa.or_(fence.is_(None), newer),
        )
        return self._changed(connection, entry, [self.values(key, lease, now) for key, lease in leases])

    def values(self, key: RowKey, lease: Lease, now: float) -> dict[str, Any]:
        """Return the values of a live lease's row, by column."""
        return {
            "pool": self.pool,
            "organization_id": key.org,
            "plugin_id": key.plugin,
            "instance": key.instance,
            "host": lease.host,
            "port": lease.port,
            "runtime_state": str(lease.state),
            "fence": lease.fence,
            "pid": lease.pid,
            "lease_expires_at": lease.expires_at,
            "restart_count": lease.restarts,
            "last_error": lease.last_error,
            "created_at": now,
            "updated_at": now,
            "stopped_at": None,
        }

    def refresh(self, connection: Connection, leases: Sequence[tuple[RowKey, Lease]]) -> int:
        """Write how long leases live, into rows of the very same fence."""
        if not leases:
            return 0
        runners = self.layout.runners
        statement = (
            sa.update(runners)
            .where(*self._of_key(), self.layout.column("fence") == sa.bindparam("its_fence"))
            .values(lease_expires_at=sa.bindparam("until"))
        )
        parameters = [self._key(key) | {"its_fence": one.fence, "until": one.expires_at} for key, one in leases]
        return self._changed(connection, statement, parameters)

    def stop(self, connection: Connection, stops: Sequence[Stop], now: float) -> int:
        """End live rows whose fence is not newer than the one that was seen to end; return how many were."""
        if not stops:
            return 0
        fence, error = self.layout.column("fence"), self.layout.column("last_error")
        its_fence = sa.bindparam("its_fence", type_=sa.BigInteger())
        why = sa.bindparam("why", type_=sa.Text())
        statement = (
            sa.update(self.layout.runners)
            .where(*self._of_key(), self._was_live, sa.or_(fence.is_(None), fence <= its_fence))
            .values(
                runtime_state=sa.bindparam("its_state", type_=self.layout.column("runtime_state").type),
                fence=its_fence,
                last_error=sa.func.coalesce(why, error),
                updated_at=sa.bindparam("moment", type_=self.layout.column("updated_at").type),
                stopped_at=sa.bindparam("moment_too", type_=self.layout.column("stopped_at").type),
            )
        )
        parameters = [
            self._key(one.key)
            | {"its_fence": one.fence, "its_state": one.state, "why": one.why, "moment": now, "moment_too": now}
            for one in stops
        ]
        return self._changed(connection, statement, parameters)

    def make_way(
        self, connection: Connection, leases: Sequence[tuple[RowKey, Lease]], now: float, *, unfenced: bool
    ) -> int:
        """End live rows of other workers, with older fences, at the places of leases; return how many were ended.

        Args:
            connection: In a transaction.
            leases: The leases with the keys of their own rows.
            now: The time, in Unix seconds.
            unfenced: Whether rows without a fence count as older, and rows of the lease's own fence, whose key
                somebody changed by hand; only a leader may.
        """
        if not leases:
            return 0
        columns = self.layout.column
        fence = columns("fence")
        its_fence = sa.bindparam("its_fence", type_=sa.BigInteger())
        older = fence <= its_fence if unfenced else fence < its_fence
        others = [columns(name) != sa.bindparam(f"key_{name}") for name in ("organization_id", "plugin_id", "instance")]
        statement = (
            sa.update(self.layout.runners)
            .where(
                columns("pool") == self.pool,
                columns("host") == sa.bindparam("its_host"),
                columns("port") == sa.bindparam("its_port"),
                self._was_live,
                sa.or_(*others),
                sa.or_(fence.is_(None), older) if unfenced else older,
            )
            .values(
                runtime_state=STOPPED,
                last_error=sa.bindparam("why", type_=sa.Text()),
                updated_at=sa.bindparam("moment", type_=columns("updated_at").type),
                stopped_at=sa.bindparam("moment_too", type_=columns("stopped_at").type),
            )
        )
        parameters = [
            self._key(key)
            | {
                "its_host": lease.host,
                "its_port": lease.port,
                "its_fence": lease.fence,
                "why": f"its port was leased to {lease.worker}",
                "moment": now,
                "moment_too": now,
            }
            for key, lease in leases
        ]
        return self._changed(connection, statement, parameters)

    @staticmethod
    def _changed(connection: Connection, statement: Any, parameters: list[dict[str, Any]] | None = None) -> int:  # noqa: ANN401  # an insert or an update
        """Run a statement and return how many rows it changed."""
        counted = statement.execution_options(preserve_rowcount=True)
        result = connection.execute(counted, parameters) if parameters else connection.execute(counted)
        return int(result.rowcount)

    def _of_key(self) -> list[sa.ColumnElement[bool]]:
        columns = self.layout.column
        return [
            columns("pool") == self.pool,
            *(columns(name) == sa.bindparam(f"key_{name}") for name in ("organization_id", "plugin_id", "instance")),
        ]

    @staticmethod
    def _key(key: RowKey) -> dict[str, Any]:
        return {"key_organization_id": key.org, "key_plugin_id": key.plugin, "key_instance": key.instance}

    @staticmethod
    def _insert(connection: Connection, table: sa.Table) -> Any:  # noqa: ANN401  # the insert of one of two dialects
        if connection.dialect.name == "sqlite":
            from sqlalchemy.dialects.sqlite import insert as sqlite_insert

            return sqlite_insert(table)
        from sqlalchemy.dialects.postgresql import insert

        return insert(table)


def _made_of(lease: Lease, row: Row) -> str:
    """Return where a row leads others astray that was written for a lease, or an empty text."""
    pairs = (("host", row.host, lease.host), ("port", row.port, lease.port), ("state", row.state, str(lease.state)))
    return ", ".join(f"{name} {made} instead of {meant}" for name, made, meant in pairs if made != meant)


def _row(found: Sequence[Any]) -> Row:
    """Return a row as it is read; SQLite's columns hold what they are given, and a word of another type is unknown."""
    org, plugin, instance, host, port, state, fence, pid, expires_at, restarts, error = found
    key = RowKey(_text(org) or "", _text(plugin) or "", NO_INSTANCE if instance is None else instance)
    its_host = host if isinstance(host, str) else None
    counts = _whole(restarts) or 0
    return Row(
        key, its_host, _whole(port), _text(state) or "", _whole(fence), _whole(pid), expires_at, counts, _text(error)
    )


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) else None


def _text(value: object) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
