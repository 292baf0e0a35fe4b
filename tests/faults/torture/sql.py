"""The table of workers of one round, in a PostgreSQL that all rounds of a run share; it watches over its fences."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import psycopg
from postgres import Postgres, binaries
from psycopg.rows import dict_row
from runners_table import WATCH_POSTGRES

from allocator.database.connection import Database
from allocator.database.upgrade import upgrade
from allocator.model.errors import DatabaseUnavailableError
from allocator.model.tables import LIVE_ROW_STATES, TableNames

if TYPE_CHECKING:
    from collections.abc import Iterator

UPGRADES = 5
TABLES = ("plugin_runners", "plugin_runners_leaders")


def make_server() -> Postgres | None:
    """Return a PostgreSQL of this run's own, or None where its binaries are not installed."""
    return None if binaries() is None else Postgres()


def _upgrade_patiently(database: Database) -> None:
    """Make the tables; a very busy machine may be silent for longer in the middle than the settings allow."""
    for _ in range(UPGRADES - 1):
        with contextlib.suppress(DatabaseUnavailableError):
            upgrade(database, TableNames())
            return
    upgrade(database, TableNames())


class Table:
    """The table of workers in a database of this round's own."""

    def __init__(self, server: Postgres) -> None:
        self.server = server
        self.url = server.new_database()
        with contextlib.closing(Database.open(self.url)) as database:
            _upgrade_patiently(database)
        self.run("CREATE TABLE lowered (worker TEXT, old BIGINT, new BIGINT)")
        self.run(WATCH_POSTGRES)

    @contextlib.contextmanager
    def _connection(self) -> Iterator[psycopg.Connection[dict[str, Any]]]:
        with psycopg.connect(self.url, connect_timeout=5, row_factory=dict_row) as connection:
            yield connection

    def run(self, statement: str) -> list[dict[str, Any]]:
        """Run a statement in a transaction of its own."""
        with self._connection() as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def live(self) -> dict[str, tuple[str, int, int]]:
        """Return host, port and fence of each worker whose row is live."""
        rows = self.run("SELECT * FROM plugin_runners")
        return {
            f"{row['organization_id']}/{row['plugin_id']}#{row['instance']}": (row["host"], row["port"], row["fence"])
            for row in rows
            if row["runtime_state"] in LIVE_ROW_STATES
        }

    def lowered(self) -> list[dict[str, Any]]:
        """Return the updates that put an older fence over a newer one."""
        return self.run("SELECT * FROM lowered")

    def copy(self) -> dict[str, list[dict[str, Any]]]:
        """Return all rows, as a backup has them."""
        return {table: self.run(f"SELECT * FROM {table}") for table in TABLES}

    def restore(self, copy: dict[str, list[dict[str, Any]]]) -> None:
        """Put the rows of a copy in the place of those that are there."""
        with self._connection() as connection:
            for table, rows in copy.items():
                connection.execute(f"DELETE FROM {table}".encode())
                for row in rows:
                    names = ", ".join(row)
                    marks = ", ".join(["%s"] * len(row))
                    connection.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})".encode(), list(row.values()))
