"""What each command needs of a role of PostgreSQL; docs/explanation/security.md has the table that is tried here."""

from __future__ import annotations

import re
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest
from runners_table import Table
from supervised import Fleet, finish
from watchers import NAMES

from allocator import DatabaseRecorder, PortAllocator
from allocator.database.connection import Database
from allocator.database.leader import Leader
from allocator.database.reconciler import Reconciler, Report, differences
from allocator.database.restore import restore_from_rows
from allocator.database.upgrade import check, open_layout, upgrade
from allocator.model.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from postgres import Postgres

TABLES = ("plugin_runners", "plugin_runners_leaders", "plugin_runners_version")
ROLE = "of_least_rights"


def claims(database: Database, fleet: Fleet) -> None:
    with DatabaseRecorder.open(database.shown_url) as recorder:
        recording = PortAllocator(fleet.ports.store, fleet.ports.session, recorder=recorder)
        lease = recording.claim("email", org="org-claims", record=True)
        fleet.ports.release(lease)
        fleet.ports.release(recording.claim("stripe", org="org-next", port=lease.port, record=True))


def reconciles(database: Database, fleet: Fleet) -> None:
    leader = Leader(fleet.ports)
    lease = fleet.ports.claim("email", org="org-reconciled")
    try:
        reconciler = Reconciler(fleet.ports, database, open_layout(database, NAMES), leader=leader)
        reconciler.run(Report())
        fleet.ports.release(lease)
        reconciler.run(Report())
    finally:
        fleet.ports.release(lease)
        leader.give_up()


def adopts(database: Database, fleet: Fleet) -> None:
    variables = {"ALLOCATOR_DATABASE_URL": database.shown_url}
    code, out, err = finish(fleet.spawn("adopt", "--apply", variables=variables), timeout=60)
    if code == ConfigurationError.exit_code:
        raise ConfigurationError(err.strip())
    assert (code, "set to stopped" in out) == (0, True), err


def restores(database: Database, fleet: Fleet) -> None:
    restore_from_rows(fleet.ports, database, open_layout(database, NAMES))


def looks(database: Database, fleet: Fleet) -> None:
    assert check(database, NAMES).is_fit
    assert all(one.kind for one in differences(fleet.ports, database, NAMES))


WORK: dict[str, Callable[[Database, Fleet], None]] = {
    "claim --record": claims,
    "reconcile": reconciles,
    "adopt": adopts,
    "pool restore": restores,
    "db check": looks,
}


def documented() -> dict[str, dict[str, set[str]]]:
    """Return the table of the document: for each command the rights on each of the tables."""
    text = (Path(__file__).parents[3] / "docs/explanation/security.md").read_text()
    _, _, section = text.partition("## What a role of PostgreSQL needs")
    rows = re.findall(r"^\| (`.+?) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", section, re.MULTILINE)
    assert rows
    return {
        command: {table: set(re.findall("[A-Z]+", phrase)) for table, phrase in zip(TABLES, rights, strict=True)}
        for commands, *rights in rows
        for command in re.findall("`(.+?)`", commands)
    }


def make_role(connection: psycopg.Connection) -> None:
    if not connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (ROLE,)).fetchone():
        connection.execute(f"CREATE ROLE {ROLE} LOGIN")


@pytest.fixture
def granted(postgres: Postgres, postgres_url: str) -> Iterator[Callable[[dict[str, set[str]]], str]]:
    """Gives a role exactly some rights on an upgraded database, and returns its URL."""
    with closing(Database.open(postgres_url)) as owner:
        upgrade(owner, NAMES)
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        make_role(connection)

        def grant(rights: dict[str, set[str]]) -> str:
            for table in TABLES:
                connection.execute(f"REVOKE ALL ON {table} FROM {ROLE}")
                if rights[table]:
                    connection.execute(f"GRANT {', '.join(sorted(rights[table]))} ON {table} TO {ROLE}")
            return postgres_url.replace("postgres@", f"{ROLE}@")

        yield grant
        connection.execute(f"DROP OWNED BY {ROLE}")


def less(rights: dict[str, set[str]]) -> Iterator[tuple[str, dict[str, set[str]]]]:
    """Yield these rights without one of them, each with what it is without."""
    for table, has in rights.items():
        for right in sorted(has):
            yield f"{right} on {table}", rights | {table: has - {right}}


@pytest.mark.parametrize("command", WORK)
def test_a_role_with_the_rights_of_the_table_does_its_work_and_one_without_is_refused_in_a_line(
    granted: Callable[[dict[str, set[str]]], str], fleet: Fleet, postgres_url: str, command: str
) -> None:
    rights = documented()[command]
    with closing(Database.open(postgres_url)) as owner:
        table, first = Table(owner, fleet.pool.name), fleet.pool.first + 20
        table.add("org-hand/email", host="web-1", port=first, runtime_state="ready")
        with closing(Database.open(granted(rights))) as database:
            WORK[command](database, fleet)
        table.add("org-hand/stripe", host="web-1", port=first + 1, runtime_state="ready")
        for lacking, fewer in less(rights):
            with closing(Database.open(granted(fewer))) as database, pytest.raises(ConfigurationError) as raised:
                WORK[command](database, fleet)
            assert re.search(r"permission denied|has no [A-Z]+ on", str(raised.value)), (lacking, str(raised.value))
            assert len(str(raised.value).splitlines()) <= 1 + (command == "adopt"), lacking


def test_an_upgrade_takes_the_right_to_create_and_then_that_of_the_owner(postgres: Postgres, postgres_url: str) -> None:
    url = postgres_url.replace("postgres@", f"{ROLE}@")
    with psycopg.connect(postgres_url, autocommit=True) as connection, closing(Database.open(url)) as database:
        make_role(connection)
        with pytest.raises(ConfigurationError, match="permission denied") as raised:
            upgrade(database, NAMES)
        assert "\n" not in str(raised.value)
        connection.execute(f"GRANT CREATE ON SCHEMA public TO {ROLE}")
        upgrade(database, NAMES)
        connection.execute("ALTER TABLE plugin_runners DROP COLUMN fence")
        connection.execute("ALTER TABLE plugin_runners OWNER TO postgres")
        connection.execute(f"GRANT ALL ON plugin_runners TO {ROLE}")
        with pytest.raises(ConfigurationError, match="must be owner of table plugin_runners") as raised:
            upgrade(database, NAMES)
        assert "\n" not in str(raised.value)
        connection.execute(f"ALTER TABLE plugin_runners OWNER TO {ROLE}")
        assert any("fence" in done for done in upgrade(database, NAMES))
        connection.execute(f"DROP OWNED BY {ROLE}")
