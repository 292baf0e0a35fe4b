"""Connections that break: one error, in one line."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from psycopg.types.datetime import TimestamptzLoader
from runners_table import Table
from sqlalchemy import event, text

from allocator.database.adoption import unexplained_rows
from allocator.database.connection import Database
from allocator.database.fenced import FencedRows
from allocator.database.leader import Leader
from allocator.database.reconciler import Reconciler, Report
from allocator.database.upgrade import open_layout, upgrade
from allocator.model.errors import ConfigurationError, DatabaseUnavailableError
from allocator.model.tables import TableNames

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from allocator import PortAllocator

NAMES = TableNames()


def read_after_the_end_of(connection: Connection, other: Database) -> None:
    """Read on from a connection that the server ends meanwhile."""
    pid = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
    rows = connection.execution_options(stream_results=True, max_row_buffer=1).execute(
        text("SELECT generate_series(1, 100000)")
    )
    next(rows)
    with other.reading() as administrator:
        administrator.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
    list(rows)


def test_a_connection_that_breaks_under_a_read_is_one_error_and_no_traceback_in_the_log(
    postgres_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        closing(Database.open(postgres_url)) as database,
        closing(Database.open(postgres_url)) as other,
        pytest.raises(DatabaseUnavailableError),
        database.reading() as connection,
    ):
        read_after_the_end_of(connection, other)
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize(
    "moment", ["infinity", "-infinity", "4713-01-01 BC", "20000-01-01", "9999-12-31 23:59:59.999999Z"]
)
@pytest.mark.parametrize("kind", ["timestamptz", "timestamp"])
def test_a_moment_that_python_has_no_datetime_for_is_unknown_and_ends_nothing(
    postgres_url: str, ports: PortAllocator, kind: str, moment: str
) -> None:
    with closing(Database.open(postgres_url)) as database:
        upgrade(database, NAMES)
        table = Table(database, ports.session.pool)
        table.run(f"ALTER TABLE plugin_runners ALTER COLUMN lease_expires_at TYPE {kind}")
        lease = ports.claim("email", org="org-1")
        table.add("org-1/email", host=lease.host, port=lease.port, runtime_state="starting", fence=lease.fence)
        table.add("org-2/email", host=lease.host, port=lease.port + 1, runtime_state="ready", fence=7)
        table.run(f"UPDATE plugin_runners SET pid = :pid, lease_expires_at = '{moment}'", pid=lease.pid)
        layout = open_layout(database, NAMES)
        read = {str(row.key): row.expires_at for row in FencedRows(layout, ports.session.pool).in_order(database)}
        assert read == {"org-1/email#0": None, "org-2/email#0": None}
        assert [str(row.key) for row in unexplained_rows(ports, database, FencedRows(layout, ports.session.pool))] == [
            "org-2/email#0"
        ]
        Reconciler(ports, database, layout, leader=Leader(ports)).run(Report())
        read = {str(row.key): row.expires_at for row in FencedRows(layout, ports.session.pool).in_order(database)}
    assert read == {"org-1/email#0": pytest.approx(lease.expires_at, abs=1), "org-2/email#0": None}


def test_a_value_that_cannot_be_read_is_an_error_that_names_the_table(postgres_url: str) -> None:
    with closing(Database.open(postgres_url)) as database:
        upgrade(database, NAMES)
        table = Table(database, "sdk-v2")
        table.add("org-1/email", host="web-1", port=5556, runtime_state="ready", fence=7)
        table.run("UPDATE plugin_runners SET lease_expires_at = 'infinity'")
        strict = TimestamptzLoader
        event.listen(database.engine, "checkout", lambda raw, *_: raw.adapters.register_loader("timestamptz", strict))
        rows = FencedRows(open_layout(database, NAMES), table.pool)
        message = r"table plugin_runners holds .*too large.*; correct"
        for opened in (database.reading, database.writing):
            with pytest.raises(ConfigurationError, match=message), opened() as connection:
                rows.on_host(connection, "web-1")
        with pytest.raises(ConfigurationError, match=message):
            list(rows.in_order(database))
        with pytest.raises(ConfigurationError, match="division by zero"), database.reading() as connection:
            connection.execute(text("SELECT 1 / 0"))
