"""A table that an application made: uuid keys, foreign keys, camelCase, its own words for states."""

from __future__ import annotations

import socket
import warnings
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import redis
import sqlalchemy as sa
from their_table import NAMES, add_name, execute, make_tables, of, rows_of

from allocator import DatabaseRecorder, PortAllocator
from allocator.client.lease_files import LeaseFiles
from allocator.database.adoption import adopt_row, manual_rows
from allocator.database.connection import Database
from allocator.database.fenced import FencedRows
from allocator.database.leader import Leader
from allocator.database.reconciler import Reconciler, Report, differences
from allocator.database.restore import restore_from_rows
from allocator.database.upgrade import check, open_layout, statements, upgrade
from allocator.model.errors import ConfigurationError, InvalidInputError
from allocator.model.names import WorkerId
from allocator.model.states import LeaseState
from allocator.model.tables import NameTable, TableNames

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from allocator import PoolSpec

ROWS, WORKERS = 200, 40


@pytest.fixture
def theirs(database_url: str) -> Iterator[Database]:
    """Their tables: 20 organisations, 10 plugins with npm names, 200 rows that are stopped."""
    with closing(Database.open(database_url)) as database:
        make_tables(database)
        orgs = [add_name(database, "organizations", "slug", f"org-{n}") for n in range(20)]
        plugins = [add_name(database, "plugins", "packageName", f"@hay/plugin-p{n}") for n in range(10)]
        values = ", ".join(f"('{orgs[n // 10]}', '{plugins[n % 10]}', 'row {n}')" for n in range(ROWS))
        execute(database, f'INSERT INTO plugin_instances ("organizationId", "pluginId", note) VALUES {values}')
        yield database


def live(database: Database) -> dict[tuple[str, str], tuple[str | None, int, str]]:
    query = (
        'SELECT "organizationId" AS org, "pluginId" AS plugin, host, "workerPort" AS port, "runtimeState" AS state '
        "FROM plugin_instances WHERE \"runtimeState\" IN ('STARTING', 'RUNNING')"
    )
    return {
        (str(row["org"]), str(row["plugin"])): (row["host"], row["port"], row["state"])
        for row in rows_of(database, query)
    }


def test_their_table_is_adopted_recorded_reconciled_and_restored(
    theirs: Database, ports: PortAllocator, pool: PoolSpec, tmp_path: Path, database_url: str, redis_url: str
) -> None:
    workers = [WorkerId(f"org-{n // 10}", f"@hay/plugin-p{n % 10}", 0) for n in range(WORKERS)]
    with ExitStack() as stack, warnings.catch_warnings():
        warnings.simplefilter("error", sa.exc.SAWarning)
        listening = []
        for number, worker in enumerate(workers[:20]):  # the manual days: a port in the row, and a process that listens
            listener = stack.enter_context(socket.create_server(("127.0.0.1", pool.first + number)))
            listening.append(listener)
            org, plugin = of(worker)
            execute(
                theirs,
                f'UPDATE plugin_instances SET "workerPort" = {pool.first + number}, "runtimeState" = \'RUNNING\' '
                f"WHERE \"organizationId\" = '{org}' AND \"pluginId\" = '{plugin}'",
            )
        assert check(theirs, NAMES).missing
        upgrade(theirs, NAMES, pool.name)
        checked = check(theirs, NAMES)
        assert (checked.missing, checked.findings) == ([], [])
        assert {row["pool"] for row in rows_of(theirs, "SELECT pool FROM plugin_instances")} == {pool.name}
        has = set(rows_of(theirs, "SELECT * FROM plugin_instances")[0])
        assert not has & {"pid", "last_error", "lease_expires_at", "restart_count", "stopped_at", "updatedAt"}
        layout, leader = open_layout(theirs, NAMES), Leader(ports)
        rows = FencedRows(layout, pool.name)
        found = list(manual_rows(ports, theirs, rows))
        assert [one.why_not for one in found] == [None] * 20
        files = LeaseFiles(tmp_path / "leases")
        leases = [adopt_row(ports, files, one.row, one.listener) for one in found if one.listener]
        recorder = stack.enter_context(DatabaseRecorder.open(database_url, names=NAMES))
        recording = PortAllocator(ports.store, ports.session, recorder=recorder)
        leases += [recording.claim(worker.plugin, org=worker.org, record=True) for worker in workers[20:]]
        for state in (LeaseState.READY, LeaseState.DEGRADED):
            leases[-1] = ports.renew(replace(leases[-1], state=state), rewrite=True)[0]
            report = Reconciler(ports, theirs, layout, leader=leader).run(Report())
            assert report.refused == {}
        assert {lease.worker for lease in leases} == set(workers)
        fields = {LeaseState.STARTING: "STARTING"}
        assert live(theirs) == {
            of(lease.worker): (lease.host, lease.port, fields.get(lease.state, "RUNNING")) for lease in leases
        }
        assert list(differences(ports, theirs, NAMES)) == []
        before = rows_of(theirs, "SELECT id, note FROM plugin_instances WHERE note IS NOT NULL ORDER BY note")
        assert len(before) == ROWS
        with redis.Redis.from_url(redis_url) as client:
            client.delete(*client.scan_iter(f"alloc:{{{pool.name}}}*"))
        ports.apply_pool(pool)
        ports.session.context.rules.clear()
        done = restore_from_rows(ports, theirs, layout, wait_ms=60_000)
        assert (done.restored, done.unfit) == (WORKERS, [])
        (again,) = ports.renew(leases[-1])
        assert (again.port, again.worker) == (leases[-1].port, leases[-1].worker)
        ports.release(again)
        Reconciler(ports, theirs, layout, leader=leader).run(Report())
        assert of(again.worker) not in live(theirs)
        assert len(live(theirs)) == WORKERS - 1
        checked = check(theirs, NAMES)
        assert (checked.missing, checked.findings) == ([], [])


def test_a_worker_whose_plugin_or_organisation_has_no_row_is_named_and_not_leased(
    theirs: Database, ports: PortAllocator, pool: PoolSpec, database_url: str
) -> None:
    upgrade(theirs, NAMES, pool.name)
    good = ports.claim("@hay/plugin-p1", org="org-1")
    ports.claim("@hay/unknown", org="org-1")
    ports.claim("@hay/plugin-p1", org="nobody")
    layout, leader = open_layout(theirs, NAMES), Leader(ports)
    report = Reconciler(ports, theirs, layout, leader=leader).run(Report())
    assert report.refused == {
        "org-1/@hay/unknown#0": "no row of plugins has the packageName '@hay/unknown'; add it",
        "nobody/@hay/plugin-p1#0": "no row of organizations has the slug 'nobody'; add it",
    }
    assert live(theirs) == {of(good.worker): ("web-1", good.port, "STARTING")}
    found = list(differences(ports, theirs, NAMES))
    assert {(one.worker, str(one.kind), str(one.action)) for one in found} == {
        (worker, "missing-row", "nothing") for worker in report.refused
    }
    leased = len(ports.leases())
    with DatabaseRecorder.open(database_url, names=NAMES) as recorder:
        recording = PortAllocator(ports.store, ports.session, recorder=recorder)
        for plugin, org in (("@hay/unknown2", "org-1"), ("@hay/plugin-p1", "nobody2")):
            with pytest.raises(ConfigurationError, match=r"can have no row: no row of .*2'; add it"):
                recording.claim(plugin, org=org, record=True)
    assert len(ports.leases()) == leased
    add_name(theirs, "plugins", "packageName", "@hay/unknown")
    assert list(Reconciler(ports, theirs, layout, leader=leader).run(Report()).refused) == ["nobody/@hay/plugin-p1#0"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (NameTable("plugin", "id", "packageName"), r"no table plugin, which \[database.plugin\]"),
        (NameTable("plugins", "id", "title"), r"plugins has no column title, which \[database.plugin\]"),
        (NameTable("plugins", "uuid", "packageName"), r"plugins has no column uuid, which \[database.plugin\]"),
    ],
    ids=str,
)
def test_a_table_of_names_that_is_not_there_is_one_line(theirs: Database, names: NameTable, message: str) -> None:
    for use in (check, upgrade, open_layout):
        with pytest.raises(ConfigurationError, match=message):
            use(theirs, replace(NAMES, plugin=names))


def test_a_foreign_key_without_settings_states_what_to_write(postgres_url: str) -> None:
    with closing(Database.open(postgres_url)) as database:
        make_tables(database)
        with pytest.raises(ConfigurationError, match=r"pluginId of plugin_instances is uuid.*\[database.plugin\]"):
            check(database, replace(NAMES, plugin=None))


@pytest.mark.parametrize(
    ("states", "message"),
    [
        ({"running": "RUNNING"}, "not a state of a row"),
        ({"ready": "STOPPED", "stopped": "STOPPED"}, "have one name"),
        ({"ready": "error"}, "have one name"),
        ({"ready": ""}, "not a name for a state"),
        ({"ready": "a\nb"}, "not a name for a state"),
    ],
)
def test_states_that_cannot_be_distinguished_are_refused(states: dict[str, str], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        TableNames.checked(None, None, {}, states)


def test_names_of_states_are_literals_and_never_part_of_a_statement(
    database_url: str, ports: PortAllocator, pool: PoolSpec
) -> None:
    fields = {"ready": "it's :up", "starting": "'; DROP TABLE plugin_runners; --"}
    names = TableNames.checked(None, None, {}, fields)
    with closing(Database.open(database_url)) as database:
        execute(database, "CREATE TABLE plugin_runners (organization_id text, plugin_id text, runtime_state text)")
        upgrade(database, names, pool.name)
        ports.claim("email", org="org-1")
        ready = ports.renew(replace(ports.claim("email", org="org-2"), state=LeaseState.READY), rewrite=True)[0]
        leader = Leader(ports)
        Reconciler(ports, database, open_layout(database, names), leader=leader).run(Report())
        found = {row["port"]: row["runtime_state"] for row in rows_of(database, "SELECT * FROM plugin_runners")}
        assert found[ready.port] == fields["ready"]
        assert set(found.values()) == set(fields.values())
        assert list(differences(ports, database, names)) == []
        assert check(database, names).findings == []


def test_printed_statements_fit_into_a_transaction_of_a_migration_tool(postgres_url: str, pool: PoolSpec) -> None:
    with closing(Database.open(postgres_url)) as database:
        make_tables(database)
        execute(
            database,
            "CREATE TYPE state AS ENUM ('STARTING', 'RUNNING', 'STOPPED')",
            'ALTER TABLE plugin_instances ALTER COLUMN "runtimeState" DROP DEFAULT',
            'ALTER TABLE plugin_instances ALTER COLUMN "runtimeState" TYPE state USING "runtimeState"::state',
        )
        script = statements(NAMES, "postgresql", database, pool.name)
        apart, _, rest = script.partition("-- in one transaction:\n")
        assert apart.startswith("-- outside of a transaction")
        assert "ADD VALUE IF NOT EXISTS 'FAILED'" in apart
        assert not {"BEGIN;", "COMMIT;"} & set(script.splitlines())
        with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql(apart)
        with database.writing() as connection:
            connection.exec_driver_sql(rest)
        checked = check(database, NAMES)
        assert (checked.missing, checked.findings) == ([], [])
        assert upgrade(database, NAMES) == []
