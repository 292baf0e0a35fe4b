"""The tables as SQLAlchemy Core sees them: names from the settings, types from the database where it has them.

`plugin_runners` has one row per worker. Beside it stand two tables of one row per pool or none: who leads the
reconcilers (`…_leaders`), and which migrations were run (`…_version`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.types import TypeDecorator, TypeEngine

from allocator.model.pools import SDK_V2
from allocator.model.tables import COLUMNS, LIVE_ROW_STATES, NEEDED_COLUMNS, ROW_STATES

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from sqlalchemy.engine import Dialect

    from allocator.model.tables import TableNames

WORKER_COLUMNS = ("pool", "organization_id", "plugin_id", "instance")
DISCOVERED_STATES = ("starting", "ready")
"""The states that the discovery query of the port conventions asks for."""

_AFTER_ALL_DATETIMES = 253_402_300_800.0
"""The year 10000, to which the last microsecond of 9999 is rounded as a float: no datetime can be made of it again."""


class UtcTime(TypeDecorator[float]):
    """Unix seconds here, a timestamp in UTC in the database, whether or not the column has a time zone."""

    impl = sa.DateTime
    cache_ok = True

    def process_bind_param(self, value: float | None, dialect: Dialect) -> datetime | None:
        """Return the moment as the driver takes it."""
        if value is None:
            return None
        moment = datetime.fromtimestamp(value, tz=UTC)
        has_zone = isinstance(self.impl_instance, sa.DateTime) and self.impl_instance.timezone
        return moment if has_zone and dialect.name != "sqlite" else moment.replace(tzinfo=None)

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Any] | None:
        """Return what reads a value; SQLite's columns hold what they are given, and what is not a time is unknown."""
        read: Callable[[Any], Any] | None = super().result_processor(dialect, coltype)
        if read is None or dialect.name != "sqlite":
            return read

        def read_what_is_there(value: object) -> Any:  # noqa: ANN401  # as the base's
            try:
                return read(value)
            except (ValueError, TypeError, OverflowError):
                return None

        return read_what_is_there

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> float | None:  # noqa: ARG002  # the base's
        """Return the moment as Unix seconds."""
        if value is None:
            return None
        seconds = (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
        return seconds if seconds < _AFTER_ALL_DATETIMES else None


@dataclass(frozen=True)
class Layout:
    """The tables under the names that the settings give them.

    Attributes:
        names: Those names.
        runners: One row per worker; its columns have the keys of `COLUMNS`.
        leaders: One row per pool that a reconciler led.
        named_by: The tables that hold names, by the column of the runners that refers to them, with the columns `key`
            and `name`.
    """

    names: TableNames
    runners: sa.Table
    leaders: sa.Table
    named_by: Mapping[str, sa.Table] = field(default_factory=dict)

    def column(self, name: str) -> sa.Column[Any]:
        """Return a column of the runners by the name of the documents."""
        return self.runners.c[name]

    def has(self, name: str) -> bool:
        """Return whether the table has a column; one that fencing does not need may be missing."""
        return name in self.runners.c

    @cached_property
    def is_live(self) -> sa.ColumnElement[bool]:
        """Whether a row is live, in the terms of the index of live addresses: SQLite uses that for no bound values."""
        values = values_of(self.names, LIVE_ROW_STATES)
        return self.runners.c["runtime_state"].in_([sa.literal_column(_quoted(value)) for value in values])

    @property
    def worker_key(self) -> tuple[sa.Column[Any], ...]:
        """The columns that tell a row's worker."""
        return tuple(self.runners.c[name] for name in WORKER_COLUMNS)


def default_types() -> dict[str, TypeEngine[Any]]:
    """Return the type of each column in a table that portlease makes itself."""
    moment = UtcTime(timezone=True)
    return {
        "pool": sa.Text(),
        "organization_id": sa.Text(),
        "plugin_id": sa.Text(),
        "instance": sa.Integer(),
        "host": sa.Text(),
        "port": sa.Integer(),
        "runtime_state": sa.Text(),
        "fence": sa.BigInteger(),
        "pid": sa.BigInteger(),
        "lease_expires_at": moment,
        "restart_count": sa.Integer(),
        "last_error": sa.Text(),
        "created_at": moment,
        "updated_at": moment,
        "stopped_at": moment,
    }


_DEFAULTS = {
    "instance": sa.text("0"),
    "restart_count": sa.text("0"),
    "created_at": sa.text("CURRENT_TIMESTAMP"),
    "updated_at": sa.text("CURRENT_TIMESTAMP"),
}
_REQUIRED = {*WORKER_COLUMNS, "runtime_state", "restart_count", "created_at", "updated_at"}


def make_layout(
    names: TableNames,
    types: Mapping[str, TypeEngine[Any]] | None = None,
    *,
    has: Collection[str] = COLUMNS,
    pool: str = SDK_V2.name,
) -> Layout:
    """Return the tables.

    Args:
        names: What they are called.
        types: The types of columns that the database has already, by the names of the documents.
        has: The columns that are there, by the names of the documents; those that fencing needs are added.
        pool: The pool of rows that name none.
    """
    metadata = sa.MetaData(schema=names.schema)
    known = default_types() | dict(types or {})
    defaults = _DEFAULTS | {"pool": _text(pool), "runtime_state": _text(names.value_of("starting"))}
    columns = [
        sa.Column(
            names.column(name),
            known[name],
            key=name,
            nullable=name not in _REQUIRED,
            server_default=defaults.get(name),
        )
        for name in COLUMNS
        if name in has or name in NEEDED_COLUMNS
    ]
    runners = sa.Table(names.table, metadata, *columns)
    state, port = runners.c["runtime_state"], runners.c["port"]
    runners.append_constraint(sa.PrimaryKeyConstraint(*(runners.c[name] for name in WORKER_COLUMNS)))
    known_values = values_of(names, ROW_STATES)
    runners.append_constraint(sa.CheckConstraint(state.in_(known_values), name=f"{names.table}_state_known"))
    runners.append_constraint(sa.CheckConstraint(port.between(1, 65_535), name=f"{names.table}_port_range"))
    live = state.in_(values_of(names, LIVE_ROW_STATES))
    address = (runners.c["pool"], runners.c["host"], port)
    sa.Index(f"{names.table}_live", *address, unique=True, postgresql_where=live, sqlite_where=live)
    asked = state.in_(values_of(names, DISCOVERED_STATES))
    sa.Index(f"{names.table}_found", port, postgresql_where=asked, sqlite_where=asked)
    leaders = sa.Table(
        f"{names.table}_leaders",
        metadata,
        sa.Column("pool", sa.Text(), primary_key=True),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("holder", sa.Text(), nullable=False),
        sa.Column("updated_at", UtcTime(timezone=True), nullable=False),
    )
    return Layout(names, runners, leaders, _named_by(names, known))


def values_of(names: TableNames, states: Iterable[str]) -> list[str]:
    """Return the table's names for states, each once."""
    return list(dict.fromkeys(names.value_of(state) for state in states))


def _named_by(names: TableNames, types: Mapping[str, TypeEngine[Any]]) -> dict[str, sa.Table]:
    """Return the tables that hold names; their keys are bound as the column that refers to them is."""
    found = {}
    for column, one in (("plugin_id", names.plugin), ("organization_id", names.organization)):
        if one is not None:
            key = sa.Column(one.key, types[column], key="key")
            name = sa.Column(one.name, sa.Text(), key="name")
            found[column] = sa.Table(one.table, sa.MetaData(schema=names.schema), key, name)
    return found


def _text(value: str) -> sa.TextClause:
    """Return a text as a literal of SQL."""
    return sa.text(_quoted(value).replace(":", "\\:"))


def _quoted(value: str) -> str:
    doubled = value.replace("'", "''")
    return f"'{doubled}'"
