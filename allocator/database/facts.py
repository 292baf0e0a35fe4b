"""What a database has of the tables: read from its catalogue, changing nothing.

The types of a table that was there before portlease are kept (`uuid` or text ids, an enum of states, timestamps with
or without a zone); this module states which ones can be worked with, and why another cannot.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from allocator.database.layout import WORKER_COLUMNS, UtcTime, default_types
from allocator.model.errors import ConfigurationError
from allocator.model.tables import COLUMNS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sqlalchemy import Connection
    from sqlalchemy.engine.reflection import Inspector
    from sqlalchemy.types import TypeEngine

    from allocator.database.layout import Layout
    from allocator.model.tables import NameTable, TableNames

REPORTED_BY = ("organization_id", "plugin_id")
"""Without these columns a table is not one of workers; all others can be added."""

_TYPE_NAMES = frozenset({"pool", "plugin_id", "host", "last_error"})
_NUMBERS = frozenset({"instance", "port", "pid", "restart_count", "fence"})
_MOMENTS = frozenset({"lease_expires_at", "created_at", "updated_at", "stopped_at"})


_KIND = """
SELECT CAST(c.relkind AS text), ARRAY(
    SELECT CAST(coalesce(a.attname, 'an expression') AS text) FROM unnest(CAST(p.partattrs AS int2[])) AS part
    LEFT JOIN pg_catalog.pg_attribute AS a ON a.attrelid = c.oid AND a.attnum = part)
FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
LEFT JOIN pg_catalog.pg_partitioned_table AS p ON p.partrelid = c.oid
WHERE c.relname = :name AND CASE WHEN CAST(:schema AS text) IS NULL
    THEN pg_catalog.pg_table_is_visible(c.oid) ELSE n.nspname = CAST(:schema AS text) END
"""
"""Of what kind a relation of PostgreSQL is, and by which columns it is partitioned: its unique keys all have those, and
the pool is all that the worker's key and the place's have in common."""


@dataclass(frozen=True)
class TableFacts:
    """What there is.

    Attributes:
        columns: By the name they have in the database: type, whether they may be NULL, whether they have a default.
        types: The types of the columns that portlease uses, by the names of the documents, fit to bind values.
        unique_over: The sets of columns that a key, constraint or full index makes unique.
        indexes: The names of the indexes.
        checks: Constraints that are checked, by name: their text.
        triggers: The names of the triggers (SQLite only).
        states: The values of the enum that the states are, or None when they are text.
        has_leaders: Whether the table of leaders is there.
        version: The migration that the database is at, or None.
        has: The columns that portlease uses and that are there, by the names of the documents.
        counts: How many rows contradict a rule, by the rule's name.
    """

    columns: Mapping[str, Mapping[str, Any]]
    types: Mapping[str, TypeEngine[Any]]
    unique_over: frozenset[frozenset[str]]
    indexes: frozenset[str]
    checks: Mapping[str, str]
    triggers: frozenset[str]
    states: tuple[str, ...] | None
    enum_name: str | None
    has_leaders: bool
    version: str | None
    has: frozenset[str] = frozenset(COLUMNS)
    counts: Mapping[str, int] = field(default_factory=dict)


def read_facts(connection: Connection, names: TableNames) -> TableFacts | None:
    """Return what the database has of the table of workers, or None when it has no such table.

    Raises:
        ConfigurationError: When something else has the table's name, or a column's type cannot be worked with.
    """
    inspector = sa.inspect(connection)
    if not inspector.has_table(names.table, schema=names.schema):
        return None
    kind = _kind(connection, inspector, names)
    if kind is not None:
        raise ConfigurationError(f"{names} is {kind}; name an ordinary table in [database] of allocator.toml")
    columns = {column["name"]: column for column in inspector.get_columns(names.table, schema=names.schema)}
    missing = [names.column(name) for name in REPORTED_BY if names.column(name) not in columns]
    if missing:
        raise ConfigurationError(
            f"the table {names} is something else: it has no column {missing[0]}; map its names in "
            "[database.columns] of allocator.toml, or name another table in [database]"
        )
    for what, one in (("plugin", names.plugin), ("organization", names.organization)):
        if one is not None:
            _check_names(inspector, names, what, one)
    state_column = columns.get(names.column("runtime_state"))
    state = state_column["type"] if state_column else None
    return TableFacts(
        columns=columns,
        types=_types(names, columns, is_sqlite=connection.dialect.name == "sqlite"),
        unique_over=_unique_over(inspector, names),
        indexes=frozenset(
            str(index["name"]) for index in inspector.get_indexes(names.table, schema=names.schema) if index["name"]
        ),
        checks={
            str(check["name"]): check["sqltext"]
            for check in inspector.get_check_constraints(names.table, schema=names.schema)
        },
        triggers=_triggers(connection),
        states=tuple(state.enums) if isinstance(state, sa.Enum) else None,
        enum_name=_enum_name(connection, state) if isinstance(state, sa.Enum) else None,
        has_leaders=inspector.has_table(f"{names.table}_leaders", schema=names.schema),
        version=_version(connection, inspector, names),
        has=frozenset(name for name in COLUMNS if names.column(name) in columns),
    )


_MAY = "SELECT bool_and(has_column_privilege(CAST(:name AS text), one, '{0}')) FROM unnest(CAST(:{1} AS text[])) AS one"
_RIGHTS = "SELECT current_user, " + ", ".join(
    f"({_MAY.format(right, columns)})"
    for right, columns in (("SELECT", "all"), ("INSERT", "all"), ("UPDATE", "changed"))
)
"""What the role may do; a right on the table is one on each of its columns."""


def missing_rights(connection: Connection, layout: Layout, *, leads: bool = True) -> Iterator[str]:
    """Yield as text what this role may not do with each of the tables although who writes rows has to.

    Args:
        connection: To the database.
        layout: The tables.
        leads: Whether a reconciler's rights are asked for: those on the table of leaders too.
    """
    if connection.dialect.name == "sqlite":
        path = connection.engine.url.database or ""
        if not os.access(path, os.W_OK):
            yield f"this user may not write the file {path}, so that nothing is recorded; correct its rights"
        return
    kept = {name for name in WORKER_COLUMNS if name != "pool"} | {"pool", "created_at"}
    for table in (layout.runners, layout.leaders) if leads else (layout.runners,):
        name = connection.dialect.identifier_preparer.format_table(table)
        changed = [column.name for column in table.c if column.key not in kept or table is layout.leaders]
        values = {"name": name, "all": [column.name for column in table.c], "changed": changed}
        role, *may = connection.execute(sa.text(_RIGHTS), values).one()
        lacks = [right for right, has in zip(("SELECT", "INSERT", "UPDATE"), may, strict=True) if not has]
        if lacks:
            rights = ", ".join(lacks)
            yield (
                f"the role {role} has no {rights} on {name}, so that no row is recorded; "
                f"GRANT {rights} ON {name} TO {connection.dialect.identifier_preparer.quote(role)}"
            )


def _kind(connection: Connection, inspector: Inspector, names: TableNames) -> str | None:
    """Return what has the table's name instead of a table that can have its keys, or None."""
    if connection.dialect.name == "sqlite":
        return "a view" if names.table in inspector.get_view_names(schema=names.schema) else None
    found = connection.execute(sa.text(_KIND), {"name": names.table, "schema": names.schema}).one_or_none()
    if found is None:
        return None
    kind, parted_by = found
    if kind == "p":
        return (
            None if parted_by == [names.column("pool")] else f"partitioned by {', '.join(parted_by)}, not by the pool"
        )
    return {"v": "a view", "m": "a materialized view", "f": "a foreign table"}.get(kind)


def _check_names(inspector: Inspector, names: TableNames, what: str, one: NameTable) -> None:
    if not inspector.has_table(one.table, schema=names.schema):
        raise ConfigurationError(
            f"there is no table {one.table}, which [database.{what}] of allocator.toml names; correct it"
        )
    has = {column["name"] for column in inspector.get_columns(one.table, schema=names.schema)}
    for column in (one.key, one.name):
        if column not in has:
            raise ConfigurationError(
                f"the table {one.table} has no column {column}, which [database.{what}] of allocator.toml names; "
                "correct it"
            )


def _unique_over(inspector: Inspector, names: TableNames) -> frozenset[frozenset[str]]:
    found = [inspector.get_pk_constraint(names.table, schema=names.schema)["constrained_columns"]]
    found += [one["column_names"] for one in inspector.get_unique_constraints(names.table, schema=names.schema)]
    for index in inspector.get_indexes(names.table, schema=names.schema):
        options = index.get("dialect_options", {})
        partial = any(options.get(f"{dialect}_where") is not None for dialect in ("postgresql", "sqlite"))
        if index["unique"] and not partial:
            found.append([column for column in index["column_names"] if column])
    return frozenset(frozenset(columns) for columns in found if columns)


def _enum_name(connection: Connection, state: Any) -> str:  # noqa: ANN401  # an enum of one of the dialects
    preparer = connection.dialect.identifier_preparer
    name = preparer.quote(state.name)
    return f"{preparer.quote_schema(state.schema)}.{name}" if state.schema else name


def _triggers(connection: Connection) -> frozenset[str]:
    if connection.dialect.name != "sqlite":
        return frozenset()
    return frozenset(connection.execute(sa.text("SELECT name FROM sqlite_master WHERE type = 'trigger'")).scalars())


def _version(connection: Connection, inspector: Inspector, names: TableNames) -> str | None:
    if not inspector.has_table(names.version_table, schema=names.schema):
        return None
    table = sa.table(names.version_table, sa.column("version_num"), schema=names.schema)
    return connection.execute(sa.select(table.c.version_num)).scalar_one_or_none()


def _types(
    names: TableNames, columns: Mapping[str, Mapping[str, Any]], *, is_sqlite: bool
) -> dict[str, TypeEngine[Any]]:
    """Return how values are bound to the columns that are there."""
    defaults = default_types()
    if is_sqlite:  # its columns take what they are given
        return {}
    found: dict[str, TypeEngine[Any]] = {}
    for name, default in defaults.items():
        column = columns.get(names.column(name))
        if column is not None:
            found[name] = _bound_type(names, name, default, column["type"])
    return found


def _bound_type(names: TableNames, name: str, default: TypeEngine[Any], has: TypeEngine[Any]) -> TypeEngine[Any]:
    is_named = name in {"plugin_id" if names.plugin else "", "organization_id" if names.organization else ""}
    if (is_named or name == "organization_id") and isinstance(has, sa.Uuid):
        return sa.Uuid(as_uuid=False)
    if is_named and isinstance(has, sa.Integer):
        return sa.BigInteger()
    if name == "runtime_state" and isinstance(has, sa.Enum):
        return has
    if name in _MOMENTS and isinstance(has, sa.DateTime):
        return UtcTime(timezone=has.timezone)
    if name in _NUMBERS and isinstance(has, sa.Integer):
        needs = {"fence": sa.BigInteger, "port": sa.Integer}.get(name)
        too_small = (needs is sa.BigInteger and not isinstance(has, sa.BigInteger)) or isinstance(has, sa.SmallInteger)
        if not too_small or name not in {"fence", "port"}:
            return default
    if (
        name in _TYPE_NAMES | {"organization_id", "runtime_state"}
        and isinstance(has, sa.String)
        and not isinstance(has, sa.Enum)
    ):
        return default
    if name == "plugin_id" and not is_named:
        raise ConfigurationError(
            f"the column {names.column(name)} of {names} is {str(has).lower()}, not text; when it refers to another "
            "table, write in [database.plugin] of allocator.toml which one, and in which column it has the name"
        )
    wanted = {"fence": "bigint", "organization_id": "text or uuid"}.get(
        name, "a timestamp" if name in _MOMENTS else "integer" if name in _NUMBERS else "text"
    )
    raise ConfigurationError(
        f"the column {names.column(name)} of {names} is {str(has).lower()}, not {wanted}; "
        "change its type, or map another column in [database.columns] of allocator.toml"
    )
