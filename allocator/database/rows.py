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
from allocator.database.layout import WORKER_COLUMNS, words_of
from allocator.model.errors import InvalidInputError
from allocator.model.names import WorkerId, shown
from allocator.model.tables import COLUMNS, LIVE_ROW_STATES, STOPPED

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

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


_POSITION = "position"

NO_INSTANCE = -1
"""The instance of a row whose column is NULL: no lease has it, and no statement meets it as if it were number 0."""


class _TupleId(sa.types.UserDefinedType[str]):
    """PostgreSQL's position of a row."""

    cache_ok = True

    def get_col_spec(self, **_options: object) -> str:
        """Return its name in SQL."""
        return "tid"

    def bind_expression(self, bindvalue: sa.BindParameter[str]) -> sa.ColumnElement[str]:
        """Return a value as the database compares it."""
        return sa.cast(sa.type_coerce(bindvalue, sa.Text()), self)


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
    """One row, as far as portlease reads it; times in Unix seconds.

    `alike` are the states that its value stands for where these are several, `lacks` the columns that the table lacks.
    """

    key: RowKey
    host: str | None
    port: int | None
    state: str
    fence: int | None
    pid: int | None
    expires_at: float | None
    restart_count: int
    last_error: str | None
    alike: tuple[str, ...] = ()
    lacks: frozenset[str] = frozenset()

    @property
    def is_live(self) -> bool:
        """Whether its state states that the worker has its port."""
        return self.state in LIVE_ROW_STATES

    def is_in(self, state: str) -> bool:
        """Return whether its value stands for a state; a table may have one value for several."""
        return state == self.state or state in self.alike

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
        layout = self.layout
        columns = [layout.column(name) if layout.has(name) else sa.null().label(name) for name in _READ]
        names = {name: sa.cast(table.c["name"], sa.Text()) for name, table in layout.named_by.items()}
        org, plugin = (names.get(name, sa.null()) for name in ("organization_id", "plugin_id"))
        source: sa.FromClause = layout.runners
        for name, table in layout.named_by.items():
            source = source.outerjoin(table, table.c["key"] == layout.column(name))
        query = sa.select(*columns, org.label("its_org"), plugin.label("its_plugin")).select_from(source)
        return query.where(layout.column("pool") == self.pool)

    @cached_property
    def _is_live(self) -> sa.ColumnElement[bool]:
        return self.layout.column("runtime_state").in_(words_of(self.layout.names, LIVE_ROW_STATES))

    @cached_property
    def _was_live(self) -> sa.ColumnElement[bool]:
        """The same for a statement that is run with many sets of values, which cannot have lists among them."""
        words = words_of(self.layout.names, LIVE_ROW_STATES)
        return sa.or_(*(self.layout.column("runtime_state") == word for word in words))

    @cached_property
    def _has_uuids(self) -> bool:
        is_named = "organization_id" in self.layout.named_by
        return not is_named and isinstance(self.layout.column("organization_id").type, sa.Uuid)

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
        host, port = self.layout.column("host"), self.layout.column("port")
        by_bytes = sa.collate(host, "BINARY" if database.is_sqlite else "C")  # as Python sorts
        query = self._select.where(self._is_live, host.is_not(None), port.is_not(None))
        order = {"host": by_bytes, "port": port} | self._worker_order
        return (row for row in self._pages(database, query, order) if row.host is not None and row.port is not None)

    @property
    def _worker_order(self) -> dict[str, sa.ColumnElement[Any]]:
        return {name: self.layout.column(name) for name in WORKER_COLUMNS[1:]}

    def _pages(
        self, database: Database, query: sa.Select[Any], order: dict[str, sa.ColumnElement[Any]]
    ) -> Iterator[Row]:
        """Yield the rows of a query in an order in which none is NULL, each page from where the last one ended."""
        keys = list(order.values())
        page = query.order_by(*keys).limit(READ_AT_ONCE)
        while True:
            with database.reading() as connection, reading_rows(self.layout.names):
                found = connection.execute(page).all()
            for one in found:
                yield self._row(one)
            if len(found) < READ_AT_ONCE:
                return
            last = [
                sa.literal(found[-1][-1 if name == _POSITION else _READ.index(name)], key.type)
                for name, key in order.items()
            ]
            page = query.where(sa.tuple_(*keys) > sa.tuple_(*last)).order_by(*keys).limit(READ_AT_ONCE)

    def unclaimed(self, database: Database) -> Iterator[Row]:
        """Yield the live rows that lack a host, a port or a fence, so that they were written by hand; as `in_order`."""
        host, port, fence = (self.layout.column(name) for name in ("host", "port", "fence"))
        by_hand = sa.or_(host.is_(None), port.is_(None), fence.is_(None))
        if database.is_sqlite:  # whose columns hold what they are given
            types = ((host, "text"), (port, "integer"), (fence, "integer"))
            by_hand = sa.or_(by_hand, *(sa.func.typeof(column) != kind for column, kind in types))
        query = self._select.where(self._is_live, by_hand)
        has_key = sa.and_(*(column.is_not(None) for column in self._worker_order.values()))
        yield from self._pages(database, query.where(has_key), self._worker_order)
        position = self._position(database)
        yield from self._pages(database, query.where(sa.not_(has_key)).add_columns(position), {_POSITION: position})

    def _position(self, database: Database) -> sa.ColumnElement[Any]:
        """Return where a row lies in the table's file: an order of rows whose key has a NULL."""
        table = database.engine.dialect.identifier_preparer.format_table(self.layout.runners)
        if database.is_sqlite:
            return sa.literal_column(f"{table}.rowid", sa.BigInteger())
        return sa.literal_column(f"{table}.ctid", _TupleId())

    def other_pools(self, connection: Connection) -> dict[str, int]:
        """Return how many live rows each other pool has."""
        pool = self.layout.column("pool")
        query = sa.select(pool, sa.func.count()).where(self._is_live, pool != self.pool).group_by(pool).order_by(pool)
        return {str(name): count for name, count in connection.execute(query)}

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
        ids = self._ids(connection, keys)
        if not ids:
            return {}
        query = self._select.where(sa.tuple_(*columns).in_([(*ids[key], key.instance) for key in ids]))
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
                yield self._row(found)

    def _row(self, found: Sequence[Any]) -> Row:
        """Return a row as it is read; what SQLite's columns hold of another type than theirs is unknown."""
        org, plugin, instance, host, port, word, fence, pid, expires_at, restarts, error, its_org, its_plugin, *_ = (
            found
        )
        states = self.layout.names.states_of(_text(word) or "")
        return Row(
            key=RowKey(
                _text(its_org or org) or "",
                _text(its_plugin or plugin) or "",
                NO_INSTANCE if instance is None else instance,
            ),
            host=host if isinstance(host, str) else None,
            port=_whole(port),
            state=states[0],
            fence=_whole(fence),
            pid=_whole(pid),
            expires_at=expires_at,
            restart_count=_whole(restarts) or 0,
            last_error=_text(error),
            alike=states,
            lacks=self._lacks,
        )

    @cached_property
    def _lacks(self) -> frozenset[str]:
        return frozenset(name for name in COLUMNS if not self.layout.has(name))

    def unknown_names(self, connection: Connection, keys: Iterable[RowKey]) -> dict[RowKey, str]:
        """Return why workers can have no row: the tables that name plugins and organisations do not know them."""
        found: dict[RowKey, str] = {}
        keys = list(keys)
        for column, table in self.layout.named_by.items():
            known = self._ids_of_names(connection, table, {_name_of(key, column) for key in keys})
            for key in keys:
                name = _name_of(key, column)
                if name not in known:
                    found.setdefault(
                        key, f"no row of {table.name} has the {table.c['name'].name} {shown(name)}; add it"
                    )
                elif len(known[name]) > 1:
                    found.setdefault(key, f"several rows of {table.name} have the {table.c['name'].name} {shown(name)}")
        return found

    def _ids(self, connection: Connection, keys: Iterable[RowKey]) -> dict[RowKey, tuple[Any, Any]]:
        """Return what the columns of the organisation and the plugin hold for workers, without those that have none."""
        keys = list(keys)
        found = {key: [key.org, key.plugin] for key in keys}
        for at, column in enumerate(("organization_id", "plugin_id")):
            table = self.layout.named_by.get(column)
            if table is None:
                continue
            known = self._ids_of_names(connection, table, {_name_of(key, column) for key in found})
            for key in list(found):
                ids = known.get(_name_of(key, column), ())
                if len(ids) == 1:
                    found[key][at] = ids[0]
                else:
                    del found[key]
        return {key: (org, plugin) for key, (org, plugin) in found.items()}

    @staticmethod
    def _ids_of_names(connection: Connection, table: sa.Table, names: Collection[str]) -> dict[str, list[Any]]:
        query = sa.select(sa.cast(table.c["name"], sa.Text()), table.c["key"])
        found: dict[str, list[Any]] = {}
        for name, one in connection.execute(query.where(sa.cast(table.c["name"], sa.Text()).in_(list(names)))):
            found.setdefault(name, []).append(one)
        return found

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
            set_={name: entry.excluded[name] for name in _FOLLOWS_LEASE if self.layout.has(name)},
            where=sa.or_(fence.is_(None), newer),
        )
        ids = self._ids(connection, [key for key, _ in leases])
        unknown = self.unknown_names(connection, [key for key, _ in leases if key not in ids])
        for why in unknown.values():
            raise RowRefusedError(why)
        return self._changed(connection, entry, [self.values(ids[key], lease, now) for key, lease in leases])

    def values(self, ids: tuple[Any, Any], lease: Lease, now: float) -> dict[str, Any]:
        """Return the values of a live lease's row, by column."""
        org, plugin = ids
        values = {
            "pool": self.pool,
            "organization_id": org,
            "plugin_id": plugin,
            "instance": lease.instance,
            "host": lease.host,
            "port": lease.port,
            "runtime_state": self.layout.names.word(str(lease.state)),
            "fence": lease.fence,
            "pid": lease.pid,
            "lease_expires_at": lease.expires_at,
            "restart_count": lease.restarts,
            "last_error": lease.last_error,
            "created_at": now,
            "updated_at": now,
            "stopped_at": None,
        }
        return {name: value for name, value in values.items() if self.layout.has(name)}

    def refresh(self, connection: Connection, leases: Sequence[tuple[RowKey, Lease]]) -> int:
        """Write how long leases live, into rows of the very same fence."""
        if not leases or not self.layout.has("lease_expires_at"):
            return 0
        runners = self.layout.runners
        statement = (
            sa.update(runners)
            .where(*self._of_key(), self.layout.column("fence") == sa.bindparam("its_fence"))
            .values(lease_expires_at=sa.bindparam("until"))
        )
        ids = self._ids(connection, [key for key, _ in leases])
        parameters = [
            self._key(key, ids[key]) | {"its_fence": one.fence, "until": one.expires_at}
            for key, one in leases
            if key in ids
        ]
        return self._changed(connection, statement, parameters)

    def stop(self, connection: Connection, stops: Sequence[Stop], now: float) -> int:
        """End live rows whose fence is not newer than the one that was seen to end; return how many were."""
        if not stops:
            return 0
        fence = self.layout.column("fence")
        its_fence = sa.bindparam("its_fence", type_=sa.BigInteger())
        statement = (
            sa.update(self.layout.runners)
            .where(*self._of_key(), self._was_live, sa.or_(fence.is_(None), fence <= its_fence))
            .values(runtime_state=self._bound("its_state", "runtime_state"), fence=its_fence, **self._of_an_end())
        )
        ids = self._ids(connection, [one.key for one in stops])
        parameters = [
            self._key(one.key, ids[one.key])
            | {"its_fence": one.fence, "its_state": self.layout.names.word(one.state), "why": one.why}
            | {"moment": now, "moment_too": now}
            for one in stops
            if one.key in ids
        ]
        return self._changed(connection, statement, parameters)

    def _bound(self, parameter: str, column: str) -> sa.BindParameter[Any]:
        return sa.bindparam(parameter, type_=self.layout.column(column).type)

    def _of_an_end(self) -> dict[str, Any]:
        """Return what an ended row states of its end, as far as the table has columns for it."""
        values: dict[str, Any] = {}
        if self.layout.has("last_error"):
            why = sa.bindparam("why", type_=sa.Text())
            values["last_error"] = sa.func.coalesce(why, self.layout.column("last_error"))
        for column, parameter in (("updated_at", "moment"), ("stopped_at", "moment_too")):
            if self.layout.has(column):
                values[column] = self._bound(parameter, column)
        return values

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
            .values(runtime_state=self.layout.names.word(STOPPED), **self._of_an_end())
        )
        ids = self._ids(connection, [key for key, _ in leases])
        parameters = [
            self._key(key, ids[key])
            | {
                "its_host": lease.host,
                "its_port": lease.port,
                "its_fence": lease.fence,
                "why": f"its port was leased to {lease.worker}",
                "moment": now,
                "moment_too": now,
            }
            for key, lease in leases
            if key in ids
        ]
        return self._changed(connection, statement, parameters)

    @staticmethod
    def _changed(connection: Connection, statement: Any, parameters: list[dict[str, Any]] | None = None) -> int:  # noqa: ANN401  # an insert or an update
        """Run a statement, once or for each of several sets of values, and return how many rows it changed."""
        if parameters is not None and not parameters:
            return 0
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
    def _key(key: RowKey, ids: tuple[Any, Any]) -> dict[str, Any]:
        return {"key_organization_id": ids[0], "key_plugin_id": ids[1], "key_instance": key.instance}

    @staticmethod
    def _insert(connection: Connection, table: sa.Table) -> Any:  # noqa: ANN401  # the insert of one of two dialects
        if connection.dialect.name == "sqlite":
            from sqlalchemy.dialects.sqlite import insert as sqlite_insert

            return sqlite_insert(table)
        from sqlalchemy.dialects.postgresql import insert

        return insert(table)


def _name_of(key: RowKey, column: str) -> str:
    return key.org if column == "organization_id" else key.plugin


def _made_of(lease: Lease, row: Row) -> str:
    """Return where a row leads others astray that was written for a lease, or an empty text."""
    state = str(lease.state)
    pairs = (
        ("host", row.host, lease.host),
        ("port", row.port, lease.port),
        ("state", state if row.is_in(state) else row.state, state),
    )
    return ", ".join(f"{name} {made} instead of {meant}" for name, made, meant in pairs if made != meant)


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) else None


def _text(value: object) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
