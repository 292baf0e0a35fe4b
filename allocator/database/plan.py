"""What a database lacks, as findings for people and as statements that fix it; nothing is carried out here.

The rules of this file: no row is deleted, no column that was there is changed, and what cannot be added without
touching somebody's rows becomes a finding that shows what to do. What was there before (columns, triggers, foreign
keys) stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.schema import CreateColumn, CreateIndex, CreateTable

from allocator.database.layout import WORKER_COLUMNS, Layout, values_of
from allocator.model.tables import COLUMNS, LIVE_ROW_STATES, ROW_STATES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection
    from sqlalchemy.engine import Dialect

    from allocator.database.facts import TableFacts


_WITHOUT = {"without pool": "pool", "without instance": "instance"}
"""Rules of columns that identify a row's worker, and that an existing table may leave empty."""

_NAMELESS = frozenset({"plugin_id", "organization_id"})
"""Rules of columns that refer to a table of names."""


@dataclass(frozen=True, slots=True)
class Step:
    """One statement.

    Attributes:
        why: What is missing, as text.
        sql: The statement.
        apart: Whether it has to be committed before the others (new values of a PostgreSQL enum).
    """

    why: str
    sql: str
    apart: bool = False

    @property
    def clause(self) -> sa.TextClause:
        """The statement as it can be run: a colon in a literal does not begin a parameter."""
        return sa.text(self.sql.replace(":", "\\:"))


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about a table that was there before which only its owner can decide.

    Attributes:
        text: What is the matter, and what to do.
        blocks: Whether nothing can be written until it is fixed.
    """

    text: str
    blocks: bool


class Planner:
    """Compares one database with the layout.

    Args:
        layout: The table as it should be.
        facts: The table as it is, or None when there is none.
        dialect: The SQL dialect of the database.
    """

    def __init__(self, layout: Layout, facts: TableFacts | None, dialect: Dialect) -> None:
        self.layout = layout
        self._names = layout.names
        self._facts = facts
        self._dialect = dialect
        self._is_sqlite = dialect.name == "sqlite"
        self._table = dialect.identifier_preparer.format_table(layout.runners)

    def steps(self) -> list[Step]:
        """Return the statements that are missing, in their order."""
        return [*self._runners(), *self._leaders()]

    def _runners(self) -> Iterator[Step]:
        if self._facts is None:
            yield Step(f"table {self._names}", self._written(CreateTable(self.layout.runners)))
        else:
            yield from self._states(self._facts)
            yield from self._columns(self._facts)
            yield from self._workers(self._facts)
            yield from self._checks(self._facts)
        for index in sorted(self.layout.runners.indexes, key=lambda one: str(one.name)):
            if self._facts is None or str(index.name) not in self._facts.indexes:
                yield Step(f"index {index.name}", self._written(CreateIndex(index)))

    def _leaders(self) -> Iterator[Step]:
        if self._facts is None or not self._facts.has_leaders:
            yield Step(f"table {self.layout.leaders.name}", self._written(CreateTable(self.layout.leaders)))

    def _states(self, facts: TableFacts) -> Iterator[Step]:
        for value in values_of(self._names, ROW_STATES):
            if facts.states is not None and value not in facts.states:
                added = f"ALTER TYPE {facts.enum_name} ADD VALUE IF NOT EXISTS {_literal(value)}"
                yield Step(f"state {value}", added, apart=True)

    def _columns(self, facts: TableFacts) -> Iterator[Step]:
        for ours in self.layout.runners.c:
            column: sa.Column[Any] = ours
            if column.name in facts.columns:
                continue
            plain = (
                self._is_sqlite
                and column.server_default is not None
                and isinstance(column.type, sa.types.TypeDecorator)
            )
            if plain:  # SQLite adds no column with a default that is not constant
                column = sa.Column(column.name, column.type)
                sa.Table("_", sa.MetaData(), column)
            yield Step(
                f"column {column.name}", f"ALTER TABLE {self._table} ADD COLUMN {self._written(CreateColumn(column))}"
            )
            if plain:
                quoted = self._quote(column.name)
                now = f"UPDATE {self._table} SET {quoted} = CURRENT_TIMESTAMP WHERE {quoted} IS NULL"  # noqa: S608  # quoted names
                yield Step(f"values of column {column.name}", now)

    def _workers(self, facts: TableFacts) -> Iterator[Step]:
        """One row per worker: several rows of one worker become its instances, the live and newest one the first."""
        columns = [self._names.column(name) for name in WORKER_COLUMNS]
        if frozenset(columns) in facts.unique_over:
            return
        if self._names.column("instance") not in facts.columns:
            yield Step("instances of workers with several rows", self._numbering())
        listed = ", ".join(self._quote(column) for column in columns)
        name = f"{self._names.table}_worker"
        yield Step(f"index {name}", f"CREATE UNIQUE INDEX {self._quote(name)} ON {self._table} ({listed})")

    def _numbering(self) -> str:
        row_id = ("rowid",) if self._is_sqlite else ("tableoid", "ctid")  # partitions count their rows apart
        row_ids = ", ".join(f"{name} AS its_{name}" for name in row_id)
        same_row = " AND ".join(f"{self._table}.{name} = numbered.its_{name}" for name in row_id)
        of = {name: self._quote(self._names.column(name)) for name in COLUMNS}
        live = ", ".join(_literal(value) for value in values_of(self._names, LIVE_ROW_STATES))
        newest = f", {of['created_at']} DESC" if self.layout.has("created_at") else ""
        return (  # names only, each quoted by the dialect
            f"UPDATE {self._table} SET {of['instance']} = numbered.number FROM ("  # noqa: S608
            f"SELECT {row_ids}, row_number() OVER (PARTITION BY {of['pool']}, {of['organization_id']}, "
            f"{of['plugin_id']} ORDER BY CASE WHEN {of['runtime_state']} IN ({live}) THEN 0 ELSE 1 END"
            f"{newest}) - 1 AS number FROM {self._table}) AS numbered "
            f"WHERE {same_row} AND numbered.number > 0"
        )

    def _checks(self, facts: TableFacts) -> Iterator[Step]:
        for constraint in sorted(self.layout.runners.constraints, key=lambda one: str(one.name)):
            if not isinstance(constraint, sa.CheckConstraint) or facts.counts.get(str(constraint.name)):
                continue
            name, text = str(constraint.name), self._written_clause(constraint.sqltext)
            if name.endswith("_state_known") and facts.states is not None:
                continue
            if self._is_sqlite:
                yield from self._check_triggers(facts, name, text)
            elif name not in facts.checks:
                yield Step(
                    f"check {name}", f"ALTER TABLE {self._table} ADD CONSTRAINT {self._quote(name)} CHECK ({text})"
                )

    def _check_triggers(self, facts: TableFacts, name: str, text: str) -> Iterator[Step]:
        """SQLite adds no check to a table that is there; two triggers do the same."""
        if name in facts.checks:
            return
        column = self._quote(self._names.column("port" if name.endswith("_port_range") else "runtime_state"))
        condition = text.replace(column, f"NEW.{column}", 1)
        for event, suffix in (("INSERT", "i"), (f"UPDATE OF {column}", "u")):
            trigger = f"{name}_{suffix}"
            if trigger not in facts.triggers:
                yield Step(
                    f"check {trigger}",
                    f"CREATE TRIGGER {self._quote(trigger)} BEFORE {event} ON {self._table} "
                    f"WHEN NOT ({condition}) BEGIN SELECT RAISE(ABORT, 'CHECK constraint failed, {name}'); END",
                )

    def findings(self) -> list[Finding]:
        """Return what only the owner of a table that was there can decide."""
        return [] if self._facts is None else [*self._needed_values(self._facts), *self._contradictions(self._facts)]

    def _needed_values(self, facts: TableFacts) -> Iterator[Finding]:
        ours = {self._names.column(name): name for name in COLUMNS}
        for name, column in facts.columns.items():
            required = not column["nullable"] and column.get("default") is None
            if name in ours:
                if column.get("computed"):
                    yield Finding(
                        f"the database makes the column {name} of {self._names} itself (GENERATED), so that no row can "
                        "be written; make it an ordinary column",
                        True,
                    )
                if required and ours[name] in {"pid", "last_error", "stopped_at"}:
                    yield Finding(f"column {name} of {self._names} must allow NULL; drop its NOT NULL", True)
            elif required and not self._fills_itself(column):
                yield Finding(
                    f"column {name} of {self._names} needs a value that portlease does not have, so no row can be "
                    f"inserted; give it a default (ALTER TABLE … ALTER COLUMN {name} SET DEFAULT …) or allow NULL",
                    True,
                )

    def _fills_itself(self, column: Any) -> bool:  # noqa: ANN401  # a row of SQLAlchemy's inspector
        if column.get("identity") or column.get("computed") or column.get("autoincrement") is True:
            return True
        return self._is_sqlite and bool(column.get("primary_key")) and isinstance(column["type"], sa.Integer)

    def _contradictions(self, facts: TableFacts) -> Iterator[Finding]:
        state = self._names.column("runtime_state")
        for name, text in facts.checks.items():
            values = values_of(self._names, ROW_STATES)
            unknown = [value for value in values if _literal(value) not in text]
            if state in text and name != f"{self._names.table}_state_known" and unknown:
                yield Finding(
                    f"the check {name} of {self._names} does not know the state {unknown[0]}; "
                    f"let it allow {', '.join(values)}",
                    True,
                )
        for rule, count in facts.counts.items():
            if not count:
                continue
            if rule == f"{self._names.table}_live":
                yield Finding(
                    f"{count} addresses of {self._names} have several live rows; set all but one of each to stopped",
                    True,
                )
            elif rule in _NAMELESS:
                column = self._names.column(rule)
                table = self.layout.named_by[rule]
                yield Finding(
                    f"{count} live rows of {self._names} have a {column} without a row in {table.name}, so that nobody "
                    "knows whose they are; correct it",
                    False,
                )
            elif rule in _WITHOUT:
                column = self._names.column(_WITHOUT[rule])
                yield Finding(
                    f"{count} rows of {self._names} have no {column} (NULL), so that no claim finds them and a second "
                    f"row is made beside them; give them their {column} and set the column NOT NULL",
                    False,
                )
            elif rule == f"{self._names.table}_worker":
                yield Finding(f"{count} workers of {self._names} have several rows; delete all but one of each", True)
            else:
                yield Finding(
                    f"{count} rows of {self._names} contradict {rule}, so that it is not added; fix them and run "
                    "'allocator db upgrade' again",
                    False,
                )

    def _quote(self, name: str) -> str:
        return self._dialect.identifier_preparer.quote(name)

    def _written(self, element: Any) -> str:  # noqa: ANN401  # one of SQLAlchemy's DDL elements
        return str(element.compile(dialect=self._dialect)).strip().replace("\t", "    ").replace(", \n", ",\n")

    def _written_clause(self, clause: Any) -> str:  # noqa: ANN401  # an expression of SQLAlchemy
        return str(
            clause.compile(dialect=self._dialect, compile_kwargs={"literal_binds": True, "include_table": False})
        )


def count_contradictions(connection: Connection, layout: Layout, facts: TableFacts) -> dict[str, int]:
    """Return how many rows contradict each rule that is not in force yet."""
    names, has = layout.names, set(facts.columns)
    counts: dict[str, int] = {}

    def columns(*wanted: str) -> bool:
        return all(names.column(name) in has for name in wanted)

    runners = layout.runners
    for constraint in runners.constraints:
        if isinstance(constraint, sa.CheckConstraint):
            name = str(constraint.name)
            column = "port" if name.endswith("_port_range") else "runtime_state"
            if columns(column) and name not in facts.checks and facts.states is None:
                counts[name] = _count(
                    connection, sa.select(sa.literal(1)).select_from(runners).where(sa.not_(constraint.sqltext))
                )
    if f"{names.table}_live" not in facts.indexes and columns("host", "port", "runtime_state"):
        pool = [layout.column("pool")] if columns("pool") else []
        row_id = [*pool, layout.column("host"), layout.column("port")]
        live = layout.column("runtime_state").in_(_known(facts, values_of(names, LIVE_ROW_STATES)))
        there = sa.and_(layout.column("host").is_not(None), layout.column("port").is_not(None))
        counts[f"{names.table}_live"] = _count(
            connection, sa.select(sa.literal(1)).where(live, there).group_by(*row_id).having(sa.func.count() > 1)
        )
    worker = [layout.column(name) for name in WORKER_COLUMNS if columns(name)]
    if columns("instance") and frozenset(names.column(name) for name in WORKER_COLUMNS) not in facts.unique_over:
        counts[f"{names.table}_worker"] = _count(
            connection, sa.select(sa.literal(1)).select_from(runners).group_by(*worker).having(sa.func.count() > 1)
        )
    for rule, name in _WITHOUT.items():
        if columns(name) and facts.columns[names.column(name)]["nullable"]:
            empty = sa.select(sa.literal(1)).select_from(runners).where(layout.column(name).is_(None))
            counts[rule] = _count(connection, empty)
    if columns("runtime_state"):
        counts |= _count_nameless(connection, layout, facts)
    return counts


def _count_nameless(connection: Connection, layout: Layout, facts: TableFacts) -> dict[str, int]:
    """Return how many live rows refer to no row of the tables that have the names, by the column that refers to it."""
    counts = {}
    for rule, table in layout.named_by.items():
        live = layout.column("runtime_state").in_(_known(facts, values_of(layout.names, LIVE_ROW_STATES)))
        source = layout.runners.outerjoin(table, table.c["key"] == layout.column(rule))
        nameless = sa.select(sa.literal(1)).select_from(source).where(live, table.c["name"].is_(None))
        counts[rule] = _count(connection, nameless)
    return counts


def _literal(text: str) -> str:
    """Return a text as a literal of SQL."""
    doubled = text.replace("'", "''")
    return f"'{doubled}'"


def _known(facts: TableFacts, states: list[str]) -> list[str]:
    return [state for state in states if facts.states is None or state in facts.states]


def _count(connection: Connection, query: sa.Select[Any]) -> int:
    return int(connection.execute(sa.select(sa.func.count()).select_from(query.subquery())).scalar_one())
