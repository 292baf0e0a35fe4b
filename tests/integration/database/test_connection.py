"""Connections that break: one error, in one line."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from allocator.database.connection import Database
from allocator.model.errors import DatabaseUnavailableError

if TYPE_CHECKING:
    from sqlalchemy import Connection


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
