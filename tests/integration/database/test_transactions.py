"""A reconciler and a migration do not wait for each other, and one connection is enough for everything."""

from __future__ import annotations

import threading
import time
from contextlib import closing
from typing import TYPE_CHECKING

import psycopg
import pytest
from runners_table import Table

from allocator import DatabaseRecorder, PortAllocator
from allocator.database.adoption import manual_rows, unexplained_rows
from allocator.database.connection import Database
from allocator.database.fenced import FencedRows
from allocator.database.leader import Leader
from allocator.database.reconciler import SETTLED_AT_ONCE, Reconciler, Report
from allocator.database.restore import restore_from_rows
from allocator.database.rows import READ_AT_ONCE
from allocator.database.upgrade import check, open_layout, upgrade
from allocator.model.tables import TableNames

if TYPE_CHECKING:
    from collections.abc import Iterator

    from postgres import Postgres

    from allocator import PoolSpec

NAMES = TableNames()
WAIT_S = 60.0


def fill(database: Database, pool: str, count: int, state: str = "ready") -> None:
    """Write live rows of hosts that are gone."""
    layout = open_layout(database, NAMES)
    with database.writing() as connection:
        connection.execute(
            layout.runners.insert(),
            [
                {"pool": pool, "organization_id": f"o-{n:05}", "plugin_id": "email", "instance": 0,
                 "host": f"host-{n % 97:03}", "port": 1 + n // 97, "runtime_state": state, "fence": 3,
                 "restart_count": 0, "created_at": 0.0, "updated_at": 0.0}
                for n in range(count)
            ],
        )  # fmt: skip


class Migration:
    """An ALTER TABLE in a session of its own, which waits for whoever holds the table."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._alter, daemon=True)

    def _alter(self) -> None:
        try:
            with psycopg.connect(self._url, application_name="migration") as connection:
                connection.execute("ALTER TABLE plugin_runners ADD COLUMN theirs integer")
        except psycopg.Error as error:  # shown by the test
            self.error = error

    def start_and_wait_until_it_is_done_or_waits(self) -> None:
        self._thread.start()
        query = "SELECT 1 FROM pg_stat_activity WHERE application_name = 'migration' AND wait_event_type = 'Lock'"
        with psycopg.connect(self._url, autocommit=True) as looking:
            deadline = time.monotonic() + WAIT_S
            while self._thread.is_alive() and not looking.execute(query).fetchone():
                assert time.monotonic() < deadline
                self._thread.join(0.01)

    def is_done(self) -> bool:
        self._thread.join(WAIT_S)
        return not self._thread.is_alive() and self.error is None


@pytest.mark.parametrize("writes", [True, False], ids=["a pass that writes", "a pass that looks"])
def test_a_migration_amid_a_pass_with_many_differences_is_carried_out(
    postgres_url: str, ports: PortAllocator, writes: bool
) -> None:
    with closing(Database.open(postgres_url)) as database:
        upgrade(database, NAMES)
        fill(database, ports.session.pool, SETTLED_AT_ONCE + 50)
        ports.claim("email", org="org-1")
        layout = open_layout(database, NAMES)
        reconciler = Reconciler(ports, database, layout, leader=Leader(ports) if writes else None)
        migration, settle, done = Migration(postgres_url), reconciler.settle, []

        def settle_beside_a_migration(*arguments) -> None:
            if not done:
                done.append(True)
                migration.start_and_wait_until_it_is_done_or_waits()
            settle(*arguments)

        reconciler.settle = settle_beside_a_migration
        passing = threading.Thread(target=lambda: done.append(reconciler.run(Report())), daemon=True)
        passing.start()
        passing.join(WAIT_S)
        assert not passing.is_alive(), "the pass and the migration wait for each other"
        assert migration.is_done(), migration.error
        assert done[1].counts == {"unknown-row": SETTLED_AT_ONCE + 50, "missing-row": 1}


@pytest.fixture
def one_connection(postgres: Postgres, postgres_url: str) -> Iterator[str]:
    """The URL of a role that may have one connection at a time, and owns its schema."""
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        if not connection.execute("SELECT 1 FROM pg_roles WHERE rolname = 'single'").fetchone():
            connection.execute("CREATE ROLE single LOGIN CONNECTION LIMIT 1")
        connection.execute("CREATE SCHEMA AUTHORIZATION single")
    return postgres_url.replace("postgres@", "single@")


def test_a_role_with_one_connection_can_do_everything(
    one_connection: str, ports: PortAllocator, pool: PoolSpec
) -> None:
    with closing(Database.open(one_connection)) as database:
        assert check(database, NAMES).missing
        upgrade(database, NAMES)
        assert check(database, NAMES).is_fit
        fill(database, pool.name, SETTLED_AT_ONCE + 50)
        layout = open_layout(database, NAMES)
        rows = FencedRows(layout, pool.name)
        ports.claim("stripe", org="org-2")
        report = Reconciler(ports, database, layout, leader=Leader(ports)).run(Report())
        assert report.written == 1
        assert list(manual_rows(ports, database, rows)) == []
        assert unexplained_rows(ports, database, rows) == []
        assert restore_from_rows(ports, database, layout).known == 1
    with DatabaseRecorder.open(one_connection) as recorder:
        recording = PortAllocator(ports.store, ports.session, recorder=recorder)
        first = recording.claim("email", org="org-1", record=True)
        assert recording.claim("email", org="org-3", record=True).port != first.port


def test_a_walk_gives_every_row_once_in_order_however_the_pages_fall(
    database: Database, ports: PortAllocator, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(database, "p", 230)
    fill(database, "other", 40)
    rows = FencedRows(open_layout(database, NAMES), "p")
    whole = [row.address for row in rows.in_order(database)]
    assert len(whole) == 230 < READ_AT_ONCE
    assert whole == sorted(whole)
    for size in (1, 7, 115, 229, 230, 231):
        monkeypatch.setattr("allocator.database.rows.READ_AT_ONCE", size)
        assert [row.address for row in rows.in_order(database)] == whole


def test_no_transaction_is_open_while_a_walk_is_looked_at(postgres_url: str) -> None:
    with closing(Database.open(postgres_url)) as database:
        upgrade(database, NAMES)
        fill(database, "p", READ_AT_ONCE + 1)
        table = Table(database, "p")
        query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'portlease' AND state LIKE 'idle in%'"
        with psycopg.connect(postgres_url, autocommit=True) as looking:
            for number, _ in enumerate(FencedRows(open_layout(database, NAMES), "p").in_order(database)):
                if number in {0, READ_AT_ONCE - 1, READ_AT_ONCE}:
                    assert looking.execute(query).fetchone() == (0,)
        assert len(table.rows()) == READ_AT_ONCE + 1
