"""An application's own table from the command line: looked at, migrated, adopted, recorded, reconciled, restored."""

from __future__ import annotations

import json
import socket
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING

import pytest
from servers import client_of
from their_table import TOML, add_name, execute, make_tables, of, rows_of

from allocator.database.connection import Database
from allocator.model.names import WorkerId

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import Allocator

    from allocator import PoolSpec, PortAllocator

ORGS, PLUGINS, RUNNING = 3, 6, 4


@pytest.fixture
def theirs(database_url: str, allocator: Allocator) -> Iterator[Database]:
    """Their tables with a row for each organisation and plugin, and their names in `allocator.toml`."""
    (allocator.state / "allocator.toml").write_text(TOML.format(url=database_url))
    with closing(Database.open(database_url)) as database:
        make_tables(database)
        orgs = [add_name(database, "organizations", "slug", f"org-{n}") for n in range(ORGS)]
        plugins = [add_name(database, "plugins", "packageName", f"@hay/plugin-p{n}") for n in range(PLUGINS)]
        values = ", ".join(f"('{org}', '{plugin}', 'theirs')" for org in orgs for plugin in plugins)
        execute(database, f'INSERT INTO plugin_instances ("organizationId", "pluginId", note) VALUES {values}')
        yield database


def where(worker: WorkerId) -> str:
    org, plugin = of(worker)
    return f"WHERE \"organizationId\" = '{org}' AND \"pluginId\" = '{plugin}'"


def address(database: Database, worker: WorkerId) -> tuple[str | None, int | None, str]:
    (row,) = rows_of(database, f'SELECT host, "workerPort", "runtimeState" FROM plugin_instances {where(worker)}')
    return tuple(row.values())  # type: ignore[return-value]


def test_a_table_of_uuids_foreign_keys_and_camel_case_from_the_first_look_to_the_way_back(
    allocator: Allocator, theirs: Database, ports: PortAllocator, pool: PoolSpec
) -> None:
    workers = [WorkerId(f"org-{n % ORGS}", f"@hay/plugin-p{n}") for n in range(PLUGINS)]
    reported = []

    def done(code: int, *arguments: str) -> str:
        found = allocator(*arguments)
        reported.append(found.err)
        assert found.code == code, found.err + found.out
        return found.out

    with ExitStack() as stack:
        for number, worker in enumerate(workers[:RUNNING]):
            stack.enter_context(socket.create_server(("127.0.0.1", pool.first + number)))
            state = f'"workerPort" = {pool.first + number}, "runtimeState" = \'RUNNING\''
            execute(theirs, f"UPDATE plugin_instances SET {state} {where(worker)}")
        assert "missing  column fence" in done(1, "db", "check")
        script = done(0, "db", "sql")
        assert not {"BEGIN;", "COMMIT;"} & set(script.splitlines())
        with theirs.writing() as connection:  # as a migration tool would, in its transaction
            for statement in script.split(";\n"):
                if statement.strip():
                    connection.exec_driver_sql(statement)
        assert done(0, "db", "check") == "all well\n"
        assert "up to date" in done(0, "db", "upgrade")
        adopted = json.loads(done(0, "adopt", "--ttl", "10m", "--format", "json"))
        assert {one["worker"] for one in adopted} == {str(worker) for worker in workers[:RUNNING]}
        for worker in workers[RUNNING:]:
            port = int(done(0, "claim", worker.plugin, "--org", worker.org, "--record", "--ttl", "10m"))
            assert address(theirs, worker) == ("web-1", port, "STARTING")
        assert "no drift" in done(0, "reconcile", "--once")
        assert done(0, "reconcile", "--dry-run") == "no drift\n"
        before = {lease.worker: (lease.host, lease.port) for lease in ports.leases()}
        assert before.keys() == set(workers)
        assert {worker: address(theirs, worker)[:2] for worker in workers} == before
        client = client_of(ports.store)
        client.delete(*client.scan_iter(match=f"alloc:{{{pool.name}}}*", count=1_000))
        ports.apply_pool(pool)
        ports.session.context.rules.clear()
        done(0, "pool", "restore", "--from-database", "--for", "10m")
        assert f"{PLUGINS} ports wait for their workers" in reported[-1]
        last = workers[-1]
        assert int(done(0, "claim", last.plugin, "--org", last.org)) == before[last][1]
        done(0, "release", str(last))
        done(0, "reconcile", "--once")
        assert address(theirs, last)[2] == "STOPPED"
    assert done(0, "db", "check") == "all well\n"
    assert len(rows_of(theirs, "SELECT 1 FROM plugin_instances WHERE note = 'theirs'")) == ORGS * PLUGINS
    assert "Warning" not in "".join(reported)


def test_a_claim_whose_plugin_has_no_row_reports_it_before_it_leases(
    allocator: Allocator, theirs: Database, ports: PortAllocator
) -> None:
    assert allocator("db", "upgrade").code == 0
    for plugin, org, name in (("@hay/unknown", "org-1", "@hay/unknown"), ("@hay/plugin-p1", "nobody", "nobody")):
        refused = allocator("claim", plugin, "--org", org, "--record")
        assert (refused.code, refused.out) == (78, "")
        assert refused.err.count("\n") == 1
        assert f"'{name}'" in refused.err
        assert "add it" in refused.err
    assert ports.leases() == []
    assert allocator("claim", "@hay/unknown", "--org", "org-1", "--ttl", "10m").code == 0
    once = allocator("reconcile", "--once")
    assert (once.code, once.err.count("no row of plugins has the packageName '@hay/unknown'; add it\n")) == (1, 1)
    dry = json.loads(allocator("reconcile", "--dry-run", "--format", "json").out)
    assert [(one["worker"], "'@hay/unknown'" in one["detail"]) for one in dry] == [("org-1/@hay/unknown#0", True)]


@pytest.mark.parametrize(
    ("was", "becomes", "message"),
    [
        ('port = "workerPort"', 'harbour = "workerPort"', "harbour"),
        ('port = "workerPort"', 'port = "worker port"', "worker port"),
        ('ready = "RUNNING"', 'running = "RUNNING"', "running"),
        ('stopped = "STOPPED"', 'stopped = "RUNNING"', "one name"),
        ('name = "packageName"', 'name = "title"', "title"),
        ('table = "plugins"', 'table = "plugin"', "no table plugin"),
        ('table = "plugins"\n', "", "table"),
        ('table = "plugins"', 'table = "plugins"\ncolour = "red"', "colour"),
        ("[database.plugin]", "[database.extra]", "extra"),
    ],
    ids=lambda value: value.strip(),
)
def test_a_setting_that_cannot_be_right_is_one_line_that_names_it(
    allocator: Allocator, sqlite_theirs: str, was: str, becomes: str, message: str
) -> None:
    assert was in sqlite_theirs
    (allocator.state / "allocator.toml").write_text(sqlite_theirs.replace(was, becomes, 1))
    refused = allocator("db", "check")
    assert (refused.code, refused.out) == (78, ""), refused
    assert refused.err.count("\n") == 1
    assert message in refused.err


@pytest.fixture
def sqlite_theirs(allocator: Allocator) -> str:
    """Their tables in a SQLite file, and the settings for it."""
    url = f"sqlite:///{allocator.state}/theirs.sqlite3"
    with closing(Database.open(url)) as database:
        make_tables(database)
    return TOML.format(url=url)
