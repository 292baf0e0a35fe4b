"""Rows of the table of workers as they are read: in key order, a page at a time, by worker, or by place.

The rules of this file: nothing is written; values are bound, except the states of the settings, never written into a
statement; of other pools no more than the number of their rows is read; no transaction is open while a caller goes on
with what it was given.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

import sqlalchemy as sa

from allocator.database.errors import reading_rows
from allocator.database.layout import WORKER_COLUMNS, values_of
from allocator.model.errors import InvalidInputError
from allocator.model.names import WorkerId, shown
from allocator.model.tables import COLUMNS, LIVE_ROW_STATES, ROW_STATES

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from sqlalchemy import Connection

    from allocator.database.connection import Database
    from allocator.database.layout import Layout

READ_AT_ONCE = 2_000
"""Rows in memory while a table is walked."""

WHOLE_S = 60.0
"""How long a statement may read an index of a whole pool: a second for ten million rows."""

_WRITTEN_ONLY = {"pool", "created_at", "updated_at", "stopped_at"}
_READ = tuple(column for column in COLUMNS if column not in _WRITTEN_ONLY)
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
        """Whether the row has the state of a worker that runs."""
        return self.state in LIVE_ROW_STATES

    def is_in(self, state: str) -> bool:
        """Return whether its value stands for a state; a table may have one value for several."""
        return state == self.state or state in self.alike

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of a row that has both."""
        return self.host or "", self.port or 0


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

    def in_order(self, database: Database) -> Iterator[Row]:
        """Yield the live rows that have an address, by host (in the order of bytes, as Python sorts) and port.

        Hosts are read one after the other, small ones together, so that the index of live addresses gives each page in
        its order, whatever the order of texts is in the database. A few thousand rows are read at a time, in a
        transaction of its own that has ended when they are given out: whoever walks may take as long as it likes, and
        write. So a row that moves meanwhile may be missed or come twice.
        """
        host, port = self.layout.column("host"), self.layout.column("port")
        has_port = sa.and_(self.layout.is_live, port.is_not(None))
        of_pool = sa.select(host, sa.func.count()).where(self.layout.column("pool") == self.pool, has_port)
        with database.reading(limit_s=WHOLE_S) as connection, reading_rows(self.layout.names):
            counted = connection.execute(of_pool.group_by(host)).all()
        query = self._select.where(has_port)
        for hosts in _together({name: count for name, count in counted if isinstance(name, str)}):
            if len(hosts) == 1:
                rows = self._pages(database, query.where(host == hosts[0]), {"port": port})
                yield from (row for row in rows if row.port is not None)
                continue
            with database.reading() as connection:
                few = list(self._read(connection, query.where(host.in_(hosts))))
            yield from sorted((row for row in few if row.port is not None), key=lambda row: row.address)

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
        query = self._select.where(self.layout.is_live, by_hand)
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
        query = sa.select(pool, sa.func.count()).where(self.layout.is_live, pool != self.pool).group_by(pool)
        return {str(name): count for name, count in connection.execute(query.order_by(pool))}

    def on_host(self, connection: Connection, host_name: str) -> list[Row]:
        """Return the live rows of a host that have a fence, by port."""
        host, port, fence = (self.layout.column(name) for name in ("host", "port", "fence"))
        query = self._select.where(self.layout.is_live, host == host_name, fence.is_not(None)).order_by(port)
        return list(self._read(connection, query))

    def of_workers(self, connection: Connection, keys: Sequence[RowKey]) -> dict[RowKey, Row]:
        """Return the rows of workers, as far as they have one."""
        ids = self._ids(connection, keys) if keys else {}
        if not ids:
            return {}
        query = self._each(connection, WORKER_COLUMNS[1:], [(*ids[key], key.instance) for key in ids])
        return {row.key: row for row in self._read(connection, query)}

    def at_addresses(self, connection: Connection, addresses: Sequence[tuple[str, int]]) -> dict[tuple[str, int], Row]:
        """Return the live rows at addresses (host and port)."""
        if not addresses:
            return {}
        query = self._each(connection, ("host", "port"), addresses, self.layout.is_live)
        return {row.address: row for row in self._read(connection, query)}

    def _each(
        self,
        connection: Connection,
        names: Sequence[str],
        wanted: Sequence[tuple[Any, ...]],
        *conditions: sa.ColumnElement[bool],
    ) -> sa.Select[Any]:
        """Return the query of the rows that have one of several sets of values, of which each has one row at most.

        Each set is looked up in the index over the pool and these columns, whatever the database believes of the size
        of the table: a list of sets makes both of them read the pool's whole index.
        """
        columns = [self.layout.column(name) for name in names]
        if connection.dialect.name == "sqlite":
            return self._select.where(*_in_json(columns, wanted), *conditions)
        lists = zip(columns, zip(*wanted, strict=True), strict=True)
        arrays = [sa.literal(list(values), sa.ARRAY(column.type)) for column, values in lists]
        sought = sa.func.unnest(*arrays).table_valued(*names, name="sought").render_derived()
        pairs = (column == sought.c[name] for name, column in zip(names, columns, strict=True))
        one = self._select.where(*pairs, *conditions).limit(1).lateral()
        return sa.select(*one.c).select_from(sought.join(one, sa.true()))

    def _read(self, connection: Connection, query: sa.Select[Any]) -> Iterator[Row]:
        with reading_rows(self.layout.names):
            for found in connection.execute(query):
                yield self._row(found)

    def _row(self, found: Sequence[Any]) -> Row:
        """Return a row as it is read; what SQLite's columns hold of another type than theirs is unknown."""
        org, plugin, instance, host, port, state, fence, pid, expires_at, restarts, error, its_org, its_plugin, *_ = (
            found
        )
        value = _text(state) or ""
        states = self._states.get(value) or self.layout.names.states_of(value)
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
    def _states(self) -> dict[str, tuple[str, ...]]:
        names = self.layout.names
        return {value: names.states_of(value) for value in values_of(names, ROW_STATES)}

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


def _in_json(columns: Sequence[sa.Column[Any]], wanted: Sequence[tuple[Any, ...]]) -> list[sa.ColumnElement[bool]]:
    """Return the conditions that columns have one of several sets of values, as SQLite looks each up in an index.

    JSON has no bytes: a column of them is compared as text, without an index.
    """
    listed = json.dumps([[one.hex().upper() if isinstance(one, bytes) else one for one in values] for values in wanted])
    each = sa.func.json_each(listed).table_valued("value")
    values = [sa.func.json_extract(each.c.value, f"$[{at}]").label(f"v{at}") for at in range(len(columns))]
    sought = sa.select(*values).limit(len(wanted)).cte("sought")  # a limit keeps it apart, so that it is read first
    has_bytes = [any(isinstance(value, bytes) for value in of_column) for of_column in zip(*wanted, strict=True)]
    compared = (sa.func.hex(one) if is_hex else one for one, is_hex in zip(columns, has_bytes, strict=True))
    return [one == value for one, value in zip(compared, sought.c, strict=True)]


def _together(counts: Mapping[str, int]) -> Iterator[list[str]]:
    """Yield hosts in order, as many together as have one page of rows."""
    together, rows = list[str](), 0
    for host in sorted(counts):
        if together and rows + counts[host] > READ_AT_ONCE:
            yield together
            together, rows = [], 0
        together.append(host)
        rows += counts[host]
    if together:
        yield together


def _name_of(key: RowKey, column: str) -> str:
    return key.org if column == "organization_id" else key.plugin


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) else None


def _text(value: object) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
