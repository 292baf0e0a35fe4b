"""Bring a database to what portlease needs (`upgrade`), state what it lacks (`check`), write it down (`statements`)."""

from __future__ import annotations

import contextlib
import io
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from allocator.database.errors import RowRefusedError, translate
from allocator.database.facts import TableFacts, missing_rights, read_facts
from allocator.database.layout import Layout, make_layout
from allocator.database.plan import Finding, Planner, Step, count_contradictions
from allocator.model.errors import ConfigurationError
from allocator.model.pools import SDK_V2

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

    from alembic.config import Config
    from sqlalchemy import Connection

    from allocator.database.connection import Database
    from allocator.model.tables import TableNames

CHECK_S = 60.0
"""How long a statement may count rows that contradict a rule."""

UPGRADE_S = 900.0
"""How long a statement may add a column or an index: a minute for ten million rows."""

_LOCK = 0x706F7274
"""The advisory lock of upgrades in PostgreSQL: two that start at once run one after the other."""


@dataclass(frozen=True, slots=True)
class Checked:
    """What a database lacks.

    Attributes:
        missing: What is missing, as text.
        findings: What its owner has to decide.
    """

    missing: list[str]
    findings: list[Finding]

    @property
    def is_fit(self) -> bool:
        """Whether rows can be written as it is."""
        return not self.missing and not any(finding.blocks for finding in self.findings)


def check(database: Database, names: TableNames) -> Checked:
    """Return what the database lacks, and change nothing.

    Raises:
        ConfigurationError: When something else has the table's name.
    """
    if not database.exists():
        return Checked([step.why for step in _offline_planner(names, "sqlite").steps()], [])
    with database.reading(limit_s=CHECK_S) as connection:
        planner, facts = _planner(connection, names)
        missing = [step.why for step in planner.steps()]
        rights = list(missing_rights(connection, planner.layout)) if facts and not missing else []
    if facts is None or facts.version is None:
        missing.append(f"table {names.version_table}, which records the migrations")
    return Checked(missing, [*planner.findings(), *(Finding(text, blocks=False) for text in rights)])


def check_writable(database: Database, names: TableNames, *, leads: bool) -> None:
    """Make sure that the table lacks nothing and the role may write its rows: what is refused then is one row.

    Args:
        database: The database.
        names: What the table and its columns are called.
        leads: Whether a reconciler's rights are needed: those on the table of leaders too.

    Raises:
        ConfigurationError: When it is not.
    """
    layout = open_layout(database, names)
    with database.reading() as connection:
        planner, _ = _planner(connection, names)
        lacks = list(missing_rights(connection, layout, leads=leads))
    for text in lacks:
        raise ConfigurationError(f"permission denied: {text}")
    for finding in planner.findings():
        if finding.blocks:
            raise ConfigurationError(finding.text)


def upgrade(database: Database, names: TableNames, pool: str = SDK_V2.name) -> list[str]:
    """Create or adopt the table; return what was done, as text.

    Args:
        database: The database.
        names: What the table and its columns are called.
        pool: The pool of the rows that are there and name none, and of later ones that do not either.

    Raises:
        ConfigurationError: When something else has its name, or its owner has to decide something first.
    """
    alembic = _alembic()  # before a transaction, which PostgreSQL ends if it stands idle while a busy machine imports
    with database.reading(limit_s=CHECK_S) as connection:
        planner, _ = _planner(connection, names, pool)
    blocking = [finding.text for finding in planner.findings() if finding.blocks]
    if blocking:
        raise ConfigurationError(blocking[0] + ("" if len(blocking) == 1 else f" (and {len(blocking) - 1} more)"))
    apart = [step for step in planner.steps() if step.apart]
    for step in apart:
        with _changing(database, names) as connection:
            connection.execute(step.clause)
    with _changing(database, names) as connection:
        if not database.is_sqlite:
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
        planner, facts = _planner(connection, names, pool)
        steps = planner.steps()
        config = _config(names, steps)
        config.attributes["connection"] = connection
        alembic.upgrade(config, "head")
        if facts is not None and facts.version is not None:
            for step in steps:  # what was lost since the last revision
                connection.execute(step.clause)
    return [step.why for step in [*apart, *steps]]


@contextlib.contextmanager
def _changing(database: Database, names: TableNames) -> Iterator[Connection]:
    """Give a connection in a transaction that changes tables; what is refused is not one row's trouble."""
    try:
        with database.writing(limit_s=UPGRADE_S) as connection:
            yield connection
    except RowRefusedError as error:
        if error.may_be_the_table and isinstance(error.__cause__, Exception):
            raise translate(error.__cause__, database.shown_url) from error
        raise ConfigurationError(f"the rows of {names} contradict what is added ({error.why})") from error


def statements(names: TableNames, dialect: str, database: Database | None = None, pool: str = SDK_V2.name) -> str:
    """Return the statements that are missing, as a script for those whose migrations live elsewhere.

    They begin and end no transaction, so that a migration tool can put them into its own. What PostgreSQL does not
    allow there comes first and is marked.

    Args:
        names: What the table and its columns are called.
        dialect: `postgresql` or `sqlite`, for an empty database.
        database: The database to compare with, or None for an empty one.
        pool: As for `upgrade`.
    """
    if database is not None and database.exists():
        dialect = "sqlite" if database.is_sqlite else "postgresql"
        with database.reading(limit_s=CHECK_S) as connection:
            planner, facts = _planner(connection, names, pool)
    else:
        planner, facts = _offline_planner(names, dialect, pool), None
    steps = planner.steps()
    apart = "".join(f"{step.sql};\n" for step in steps if step.apart)
    if apart:
        apart = f"-- outside of a transaction, and committed before the rest:\n{apart}\n-- in one transaction:\n"
    steps = [step for step in steps if not step.apart]
    if facts is not None and facts.version is not None:
        return apart + "".join(f"{step.sql};\n" for step in steps)
    output = io.StringIO()
    config = _config(names, steps)
    config.attributes |= {"dialect": dialect, "output": output}
    _alembic().upgrade(config, "head", sql=True)
    return apart + output.getvalue()


def open_layout(database: Database, names: TableNames) -> Layout:
    """Return the tables as the database has them.

    Raises:
        ConfigurationError: When they are missing or not fit to be written.
    """
    if database.exists():
        with database.reading() as connection:
            planner, facts = _planner(connection, names)
        if facts is not None:
            missing = planner.steps()
            if missing:
                raise ConfigurationError(
                    f"{database.shown_url} lacks {missing[0].why}; run 'allocator db upgrade', "
                    "or see 'allocator db sql'"
                )
            return planner.layout
    raise ConfigurationError(
        f"{database.shown_url} has no table {names}; run 'allocator db upgrade', or see 'allocator db sql'"
    )


def _planner(connection: Connection, names: TableNames, pool: str = SDK_V2.name) -> tuple[Planner, TableFacts | None]:
    facts = read_facts(connection, names)
    layout = make_layout(names, facts.types, has=facts.has, pool=pool) if facts else make_layout(names, pool=pool)
    if facts:
        facts = replace(facts, counts=count_contradictions(connection, layout, facts))
    return Planner(layout, facts, connection.dialect), facts


def _offline_planner(names: TableNames, dialect: str, pool: str = SDK_V2.name) -> Planner:
    from sqlalchemy.engine import URL

    return Planner(make_layout(names, pool=pool), None, URL.create(dialect).get_dialect()())


def _alembic() -> ModuleType:
    """Return Alembic's commands, without what they never use: Mako's way to colour errors loads 5 MB of Pygments."""
    coloured = "mako.ext.pygmentplugin"
    absent = coloured not in sys.modules
    if absent:
        sys.modules[coloured] = None  # type: ignore[assignment]  # how an import is made to find nothing
    try:
        from alembic import command
    finally:
        if absent:
            del sys.modules[coloured]
    return command


def _config(names: TableNames, steps: list[Step]) -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.set_main_option("path_separator", "os")
    attributes: dict[str, Any] = {
        "version_table": names.version_table,
        "schema": names.schema,
        "steps": steps,
    }
    config.attributes |= attributes
    return config
