"""`db upgrade`, `db check`, `db sql`; and what every command that needs the database works with."""

from __future__ import annotations

from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from allocator.cli.context import read_settings, report
from allocator.cli.groups import CommandGroup
from allocator.cli.options import ConfigOption, DatabaseOption, ListFormat, PoolOption, RowsFormat
from allocator.cli.output import write_json
from allocator.model.owned import private_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from allocator.database.connection import Database
    from allocator.model.settings import Settings

FOUND = 1


class DialectName(StrEnum):
    """The databases that statements can be written for."""

    POSTGRESQL = "postgresql"
    SQLITE = "sqlite"


def register(application: typer.Typer) -> None:
    """Add the group."""
    group = typer.Typer(
        cls=CommandGroup, help="Create, adopt or check the table of workers in SQL.", no_args_is_help=True
    )
    group.command("upgrade")(upgrade)
    group.command("check")(check)
    group.command("sql")(write_statements)
    application.add_typer(group, name="db")


def upgrade(pool: PoolOption = None, database_url: DatabaseOption = None, config: ConfigOption = None) -> None:
    """Create the table of workers, or adopt the one that is there; no row and no column is lost.

    Existing rows that name no pool get that of --pool or of the settings.

    Example: allocator db upgrade --database-url postgresql://app@db/app
    """
    from allocator.database.upgrade import upgrade as bring_up

    settings = read_settings(pool, None, None, config, database_url=database_url)
    with database_of(settings, make=False) as database:
        done = bring_up(database, settings.table, settings.pool)
        report(in_use(settings, database))
        for line in done:
            report(f"added {line}")
        print(f"{settings.table} in {database.shown_url}: {'up to date' if not done else 'upgraded'}")


def check(form: RowsFormat = ListFormat.TEXT, database_url: DatabaseOption = None, config: ConfigOption = None) -> None:
    """Report what the table of workers lacks, and change nothing; exit 1 when something is missing.

    Example: allocator db check
    """
    from allocator.database.upgrade import check as look

    settings = read_settings(None, None, None, config, database_url=database_url)
    with database_of(settings, make=False) as database:
        found = look(database, settings.table)
        report(in_use(settings, database))
        if form is ListFormat.JSON:
            findings = [{"text": finding.text, "blocks": finding.blocks} for finding in found.findings]
            write_json({"fit": found.is_fit, "missing": found.missing, "findings": findings})
        else:
            for line in found.missing:
                print(f"missing  {line}")
            for finding in found.findings:
                print(f"finding  {finding.text}")
            if not found.missing and not found.findings:
                print("all well")
    if found.missing:
        report("'allocator db upgrade' adds what is missing; 'allocator db sql' prints how")
    if found.missing or found.findings:
        raise typer.Exit(FOUND)


def write_statements(
    dialect: Annotated[
        DialectName | None,
        typer.Option("--dialect", help="For an empty database of this kind, whatever is configured."),
    ] = None,
    pool: PoolOption = None,
    database_url: DatabaseOption = None,
    config: ConfigOption = None,
) -> None:
    """Print the missing statements, for projects that make migrations with another tool.

    They begin and end no transaction, so that a migration tool can run them in its own; what PostgreSQL does not allow
    there is marked. Without a configured database: those that make the table in an empty PostgreSQL.

    Example: allocator db sql > migration.sql
    """
    from allocator.database.upgrade import statements

    settings = read_settings(pool, None, None, config, database_url=database_url)
    if dialect is not None or settings.database_url is None:
        print(statements(settings.table, dialect or DialectName.POSTGRESQL, pool=settings.pool), end="")
        return
    with database_of(settings, make=False) as database:
        print(statements(settings.table, DialectName.POSTGRESQL, database, settings.pool), end="")


def in_use(settings: Settings, database: Database) -> str:
    """Return in one line which database a command works on, and who named it."""
    named = "" if settings.database_url else " (no database is configured)"
    return f"database: {database.shown_url}, table {settings.table}{named}"


@contextmanager
def database_of(settings: Settings, *, make: bool = True) -> Iterator[Database]:
    """Give the database that the settings name, closed at the end.

    Args:
        settings: What the command goes by.
        make: Whether the SQLite file that serves when none is configured is made, with its table, and that printed.
    """
    from allocator.database.configured import open_database

    if not settings.database_url:
        with private_folder(settings.state_dir, shared=True):
            pass
    database = open_database(
        settings, make=make, on_made=lambda made: report(f"no database is configured: made {made}")
    )
    try:
        yield database
    finally:
        database.close()


def database_in_use(settings: Settings) -> Database | None:
    """Return the database that is configured, or the SQLite file that serves without one where it was made, or None."""
    if settings.database_url is None:
        from importlib.util import find_spec

        if find_spec("sqlalchemy") is None:
            return None
    from allocator.database.configured import open_database

    found = open_database(settings, make=False)
    return found if settings.database_url or found.exists() else None
