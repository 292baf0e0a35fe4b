"""The table of workers: made, or taken over from those who have one, without losing a row."""

from __future__ import annotations

import sqlite3
import threading
from typing import TYPE_CHECKING

import psycopg
import pytest
import sqlalchemy as sa

from allocator import ConfigurationError, InvalidInputError
from allocator.database.connection import Database
from allocator.database.errors import RowRefusedError
from allocator.database.upgrade import check, open_layout, statements, upgrade
from allocator.model.tables import NEEDED_COLUMNS, TableNames

if TYPE_CHECKING:
    from collections.abc import Iterator

    from runners_table import Table

NAMES = TableNames()
ORG = "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"

DISCOVERY = """
SELECT
  organization_id,
  plugin_id,
  port,
  runtime_state,
  created_at
FROM plugin_runners
WHERE runtime_state IN ('starting', 'ready')
ORDER BY port;
"""
WORKER_NOT_FOUND = """
SELECT * FROM plugin_runners
WHERE organization_id = 'org-123'
AND plugin_id = 'email';
"""


@pytest.fixture
def empty(database_url: str) -> Iterator[Database]:
    opened = Database.open(database_url)
    yield opened
    opened.close()


def execute(database: Database, *commands: str) -> None:
    with database.engine.connect().execution_options(allocator_writes=True) as connection, connection.begin():
        for command in commands:
            connection.execute(sa.text(command))


def rows_of(database: Database, query: str) -> list[dict]:
    with database.reading() as connection:
        return [dict(row) for row in connection.execute(sa.text(query)).mappings()]


def test_check_states_what_is_missing_and_changes_nothing(empty: Database) -> None:
    assert "table plugin_runners" in check(empty, NAMES).missing
    assert "table plugin_runners" in check(empty, NAMES).missing
    assert upgrade(empty, NAMES)
    assert check(empty, NAMES).missing == []
    assert check(empty, NAMES).is_fit
    assert upgrade(empty, NAMES) == []


def test_the_queries_of_the_port_conventions_work_as_written(table: Table) -> None:
    table.add("org-123/email", host="web-1", port=5556, runtime_state="ready")
    table.add("org-456/email", host="web-1", port=5570, runtime_state="starting")
    table.add("org-789/email", host="web-1", port=5571, runtime_state="stopped")
    found = rows_of(table.database, DISCOVERY)
    assert [(row["organization_id"], row["port"]) for row in found] == [("org-123", 5556), ("org-456", 5570)]
    assert list(found[0]) == ["organization_id", "plugin_id", "port", "runtime_state", "created_at"]
    (row,) = rows_of(table.database, WORKER_NOT_FOUND)
    assert (row["port"], row["runtime_state"]) == (5556, "ready")


def test_the_discovery_query_reads_an_index(table: Table) -> None:
    if table.database.is_sqlite:
        plan = rows_of(table.database, "EXPLAIN QUERY PLAN " + DISCOVERY)
    else:
        table.run("SET enable_seqscan = off")
        with table.database.engine.connect() as connection:
            connection.execute(sa.text("SET enable_seqscan = off"))
            plan = [dict(row) for row in connection.execute(sa.text("EXPLAIN " + DISCOVERY)).mappings()]
    assert "plugin_runners_found" in str(plan)


@pytest.mark.parametrize("state", ["starting", "ready", "degraded", "draining"])
def test_two_live_rows_with_one_host_and_port_are_impossible(table: Table, state: str) -> None:
    table.add("org-1/email", host="web-1", port=5556, runtime_state="ready")
    with pytest.raises(sa.exc.IntegrityError):
        table.add("org-2/email", host="web-1", port=5556, runtime_state=state)
    table.add("org-2/email", host="web-1", port=5556, runtime_state="stopped")
    with pytest.raises(sa.exc.IntegrityError):
        table.run("UPDATE plugin_runners SET runtime_state = :state WHERE organization_id = 'org-2'", state=state)
    table.add("org-3/email", host="web-2", port=5556, runtime_state=state)
    table.run("UPDATE plugin_runners SET runtime_state = 'stopped' WHERE organization_id = 'org-1'")
    table.run("UPDATE plugin_runners SET runtime_state = :state WHERE organization_id = 'org-2'", state=state)


@pytest.mark.parametrize("values", [{"port": 0}, {"port": 65_536}, {"runtime_state": "running"}], ids=str)
def test_a_port_or_state_that_cannot_be_is_refused(table: Table, values: dict) -> None:
    with pytest.raises(sa.exc.IntegrityError):
        table.add("org-1/email", host="web-1", **values)


def test_a_worker_has_one_row(table: Table) -> None:
    table.add("org-1/email")
    with pytest.raises(sa.exc.IntegrityError):
        table.add("org-1/email")


def test_the_printed_statements_make_the_same_table(empty: Database, database_url: str) -> None:
    script = statements(NAMES, "sqlite" if empty.is_sqlite else "postgresql")
    if empty.is_sqlite:
        with sqlite3.connect(database_url.removeprefix("sqlite:///")) as connection:
            connection.executescript(script)
        connection.close()
    else:
        with psycopg.connect(database_url, autocommit=True) as connection:
            connection.execute(script)
    assert check(empty, NAMES).missing == []
    assert upgrade(empty, NAMES) == []


def test_what_was_lost_since_is_added_again(table: Table) -> None:
    table.run("DROP INDEX plugin_runners_live")
    assert check(table.database, NAMES).missing == ["index plugin_runners_live"]
    assert statements(NAMES, "", table.database).startswith("CREATE UNIQUE INDEX plugin_runners_live")
    assert upgrade(table.database, NAMES) == ["index plugin_runners_live"]
    assert check(table.database, NAMES).is_fit


def test_upgrades_that_start_at_once_end_with_one_table(empty: Database, database_url: str) -> None:
    failures: list[Exception] = []

    def run() -> None:
        mine = Database.open(database_url)
        try:
            upgrade(mine, NAMES)
        except Exception as error:  # noqa: BLE001  # the test says that there is none
            failures.append(error)
        finally:
            mine.close()

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert check(empty, NAMES).is_fit


def manual_table(database: Database) -> None:
    """Make a table as people have one: their ids, a note, a trigger, a foreign key, rows without host or fence."""
    if database.is_sqlite:
        execute(
            database,
            "CREATE TABLE organizations (id TEXT PRIMARY KEY)",
            f"INSERT INTO organizations VALUES ('{ORG}')",
            "CREATE TABLE plugin_runners (id INTEGER PRIMARY KEY, organization_id TEXT NOT NULL REFERENCES "
            "organizations (id), plugin_id TEXT NOT NULL, port INTEGER, runtime_state TEXT, note TEXT, "
            "created_at DATETIME DEFAULT CURRENT_TIMESTAMP)",
            "CREATE TABLE seen (id INTEGER)",
            "CREATE TRIGGER tell AFTER INSERT ON plugin_runners BEGIN INSERT INTO seen VALUES (NEW.id); END",
        )
    else:
        execute(
            database,
            "CREATE TABLE organizations (id UUID PRIMARY KEY)",
            f"INSERT INTO organizations VALUES ('{ORG}')",
            "CREATE TABLE plugin_runners (id UUID PRIMARY KEY DEFAULT gen_random_uuid(), organization_id UUID NOT NULL "
            "REFERENCES organizations (id), plugin_id VARCHAR(60) NOT NULL, port INTEGER, runtime_state TEXT, "
            "note TEXT, created_at TIMESTAMP NOT NULL DEFAULT now())",
            "CREATE TABLE seen (id UUID)",
            "CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS "
            "'BEGIN INSERT INTO seen VALUES (NEW.id); RETURN NEW; END'",
            "CREATE TRIGGER tell AFTER INSERT ON plugin_runners FOR EACH ROW EXECUTE FUNCTION tell()",
        )
    execute(
        database,
        "INSERT INTO plugin_runners (organization_id, plugin_id, port, runtime_state, note, created_at) VALUES "
        f"('{ORG}', 'email', 5556, 'stopped', 'old', '2025-01-01 00:00:00')",
        "INSERT INTO plugin_runners (organization_id, plugin_id, port, runtime_state, note, created_at) VALUES "
        f"('{ORG}', 'email', 5570, 'ready', 'new', '2025-06-01 00:00:00')",
    )


def test_a_table_that_people_have_is_taken_over_with_all_it_has(empty: Database) -> None:
    manual_table(empty)
    before = rows_of(empty, "SELECT id, organization_id, plugin_id, port, runtime_state, note FROM plugin_runners")
    assert "column host" in check(empty, NAMES).missing
    upgrade(empty, NAMES)
    after = rows_of(empty, "SELECT id, organization_id, plugin_id, port, runtime_state, note FROM plugin_runners")
    assert sorted(map(str, after)) == sorted(map(str, before))
    assert len(rows_of(empty, "SELECT * FROM seen")) == 2
    assert check(empty, NAMES).is_fit
    has = {row["note"]: row for row in rows_of(empty, "SELECT * FROM plugin_runners")}
    assert set(NEEDED_COLUMNS) <= set(has["new"])
    assert (has["new"]["instance"], has["old"]["instance"]) == (0, 1)
    assert has["new"]["pool"] == "sdk-v2"
    assert has["new"]["host"] is None
    with pytest.raises(sa.exc.DBAPIError):
        execute(empty, "UPDATE plugin_runners SET port = 0")
    execute(
        empty,
        f"INSERT INTO plugin_runners (organization_id, plugin_id, port, runtime_state) "
        f"VALUES ('{ORG}', 'stripe', 5557, 'ready')",
    )
    assert len(rows_of(empty, "SELECT * FROM seen")) == 3


def test_an_extra_column_that_needs_a_value_is_a_finding(empty: Database) -> None:
    execute(
        empty,
        "CREATE TABLE plugin_runners (cuid TEXT NOT NULL, organization_id TEXT, plugin_id TEXT)",
        "INSERT INTO plugin_runners VALUES ('c1', 'org-1', 'email')",
    )
    (finding,) = check(empty, NAMES).findings
    assert "column cuid" in finding.text
    assert "default" in finding.text
    with pytest.raises(ConfigurationError, match="column cuid"):
        upgrade(empty, NAMES)
    assert list(rows_of(empty, "SELECT * FROM plugin_runners")[0]) == ["cuid", "organization_id", "plugin_id"]


def test_rows_that_contradict_a_check_are_kept_and_the_check_is_not_added(empty: Database) -> None:
    execute(
        empty,
        "CREATE TABLE plugin_runners (organization_id TEXT, plugin_id TEXT, port INTEGER, runtime_state TEXT)",
        "INSERT INTO plugin_runners VALUES ('org-1', 'email', 70000, 'running')",
    )
    findings = [finding.text for finding in check(empty, NAMES).findings]
    assert len(findings) == 2
    assert all("1 rows" in text for text in findings)
    upgrade(empty, NAMES)
    assert rows_of(empty, "SELECT port, runtime_state FROM plugin_runners") == [
        {"port": 70000, "runtime_state": "running"}
    ]
    execute(empty, "UPDATE plugin_runners SET port = 5556, runtime_state = 'ready'")
    assert any("port_range" in step for step in upgrade(empty, NAMES))
    assert check(empty, NAMES).findings == []


def test_several_live_rows_at_one_address_have_to_be_settled_by_their_owner(empty: Database) -> None:
    execute(
        empty,
        "CREATE TABLE plugin_runners (organization_id TEXT, plugin_id TEXT, host TEXT, port INT, runtime_state TEXT)",
        "INSERT INTO plugin_runners VALUES ('org-1', 'email', 'web-1', 5556, 'ready')",
        "INSERT INTO plugin_runners VALUES ('org-2', 'email', 'web-1', 5556, 'ready')",
    )
    with pytest.raises(ConfigurationError, match="several live rows"):
        upgrade(empty, NAMES)
    execute(empty, "UPDATE plugin_runners SET runtime_state = 'stopped' WHERE organization_id = 'org-2'")
    assert upgrade(empty, NAMES)


def test_rows_that_no_key_finds_are_a_finding(empty: Database) -> None:
    execute(
        empty,
        "CREATE TABLE plugin_runners (pool TEXT, organization_id TEXT, plugin_id TEXT, instance INTEGER, port INTEGER)",
    )
    upgrade(empty, NAMES)
    assert check(empty, NAMES).findings == []
    execute(
        empty,
        "INSERT INTO plugin_runners (pool, organization_id, plugin_id, instance) VALUES ('sdk-v2', 'o', 'p', NULL), "
        "(NULL, 'o', 'p', 0), (NULL, 'o', 'q', 0), ('sdk-v2', 'o', 'p', 0)",
    )
    findings = [finding.text for finding in check(empty, NAMES).findings]
    assert [text.partition(", so")[0] for text in findings] == [
        "2 rows of plugin_runners have no pool (NULL)",
        "1 rows of plugin_runners have no instance (NULL)",
    ]
    assert upgrade(empty, NAMES) == []
    assert open_layout(empty, NAMES)


def test_something_else_under_the_name_is_refused(empty: Database) -> None:
    execute(empty, "CREATE TABLE plugin_runners (id INTEGER, colour TEXT)")
    for use in (check, upgrade, open_layout):
        with pytest.raises(ConfigurationError, match="something else"):
            use(empty, NAMES)
    execute(empty, "DROP TABLE plugin_runners", "CREATE VIEW plugin_runners AS SELECT 1 AS organization_id")
    with pytest.raises(ConfigurationError, match=r"view"):
        check(empty, NAMES)


@pytest.mark.parametrize(
    ("statements", "message"),
    [
        (
            ["CREATE MATERIALIZED VIEW plugin_runners AS SELECT 'o' AS organization_id, 'p' AS plugin_id"],
            "materialized",
        ),
        (
            [
                "CREATE FOREIGN DATA WRAPPER files",
                "CREATE SERVER files FOREIGN DATA WRAPPER files",
                "CREATE FOREIGN TABLE plugin_runners (organization_id text, plugin_id text) SERVER files",
            ],
            "foreign table",
        ),
        (
            ["CREATE TABLE plugin_runners (organization_id text, plugin_id text) PARTITION BY HASH (organization_id)"],
            "partitioned by organization_id, not by the pool",
        ),
        (
            ["CREATE TABLE plugin_runners (organization_id text, plugin_id text) PARTITION BY HASH (lower(plugin_id))"],
            "partitioned by an expression",
        ),
    ],
)
def test_what_is_no_ordinary_table_is_refused_in_one_line(
    postgres_url: str, statements: list[str], message: str
) -> None:
    database = Database.open(postgres_url)
    execute(database, *statements)
    for use in (check, upgrade, open_layout):
        with pytest.raises(ConfigurationError, match=f"^plugin_runners is .*{message}.*; name an ordinary table"):
            use(database, NAMES)
    database.close()


def test_a_table_that_is_partitioned_by_the_pool_keeps_its_other_partitions_rows(postgres_url: str) -> None:
    database = Database.open(postgres_url)
    execute(
        database,
        "CREATE TABLE plugin_runners (pool text, organization_id text, plugin_id text) PARTITION BY LIST (pool)",
        "CREATE TABLE one PARTITION OF plugin_runners FOR VALUES IN ('one')",
        "CREATE TABLE two PARTITION OF plugin_runners FOR VALUES IN ('two')",
        "INSERT INTO plugin_runners VALUES ('one', 'o', 'p'), ('one', 'o', 'p'), ('two', 'o', 'p'), ('two', 'o', 'q')",
    )
    upgrade(database, NAMES)
    assert check(database, NAMES).is_fit
    rows = rows_of(database, "SELECT pool, plugin_id, instance FROM plugin_runners ORDER BY pool, plugin_id, instance")
    assert [tuple(row.values()) for row in rows] == [("one", "p", 0), ("one", "p", 1), ("two", "p", 0), ("two", "q", 0)]
    database.close()


def test_a_column_that_the_database_makes_itself_is_the_administrators_to_fix(postgres_url: str) -> None:
    database = Database.open(postgres_url)
    upgrade(database, NAMES)
    execute(
        database,
        "ALTER TABLE plugin_runners DROP COLUMN port",
        "ALTER TABLE plugin_runners ADD COLUMN port integer GENERATED ALWAYS AS (5556) STORED",
    )
    with pytest.raises(ConfigurationError, match=r"makes the column port of plugin_runners itself .*; make it"):
        upgrade(database, NAMES)
    assert any("column port" in finding.text for finding in check(database, NAMES).findings)
    database.close()


def test_columns_of_the_wrong_type_are_named(postgres_url: str) -> None:
    database = Database.open(postgres_url)
    execute(database, "CREATE TABLE plugin_runners (organization_id TEXT, plugin_id TEXT, port TEXT)")
    with pytest.raises(ConfigurationError, match="column port of plugin_runners is text, not integer"):
        check(database, NAMES)
    execute(database, "ALTER TABLE plugin_runners DROP port", "ALTER TABLE plugin_runners ADD fence INTEGER")
    with pytest.raises(ConfigurationError, match=r"fence of plugin_runners is integer, not bigint"):
        check(database, NAMES)
    database.close()


def test_an_enum_of_states_gets_those_that_it_lacks(postgres_url: str) -> None:
    database = Database.open(postgres_url)
    execute(
        database,
        "CREATE TYPE \"Runner State\" AS ENUM ('starting', 'ready', 'stopped')",
        'CREATE TABLE plugin_runners (organization_id TEXT, plugin_id TEXT, runtime_state "Runner State")',
        "INSERT INTO plugin_runners VALUES ('org-1', 'email', 'ready')",
    )
    assert "state degraded" in check(database, NAMES).missing
    upgrade(database, NAMES)
    execute(database, "UPDATE plugin_runners SET runtime_state = 'degraded'")
    assert check(database, NAMES).is_fit
    database.close()


def test_a_check_of_theirs_that_knows_too_few_states_is_a_finding(postgres_url: str) -> None:
    database = Database.open(postgres_url)
    execute(
        database,
        "CREATE TABLE plugin_runners (organization_id TEXT, plugin_id TEXT, "
        "runtime_state TEXT CONSTRAINT known CHECK (runtime_state IN ('starting', 'ready', 'stopped')))",
    )
    assert "check known" in check(database, NAMES).findings[0].text
    database.close()


def test_mapped_names_are_used_everywhere(empty: Database) -> None:
    names = TableNames.checked("Workers", None, {"organization_id": "order", "runtime_state": "State", "pool": "p"})
    execute(empty, 'CREATE TABLE "Workers" ("order" TEXT, plugin_id TEXT, "State" TEXT)')
    upgrade(empty, names)
    execute(empty, "INSERT INTO \"Workers\" (\"order\", plugin_id, \"State\") VALUES ('org-1', 'email', 'ready')")
    layout = open_layout(empty, names)
    with empty.reading() as connection:
        (row,) = connection.execute(sa.select(layout.column("organization_id"), layout.column("pool"))).all()
    assert tuple(row) == ("org-1", "sdk-v2")


def test_a_schema_of_its_own(postgres_url: str) -> None:
    database = Database.open(postgres_url)
    names = TableNames.checked(None, "workers", {})
    execute(database, "CREATE SCHEMA workers")
    upgrade(database, names)
    assert check(database, names).is_fit
    assert check(database, NAMES).missing
    database.close()


@pytest.mark.parametrize(
    ("table", "columns"),
    [
        ('x"; DROP TABLE y', {}),
        ("x" * 56, {}),
        ("", {"port": "a b"}),
        ("", {"colour": "x"}),
        ("", {"host": "port"}),
        ("", {"host": "fence", "fence": "fence"}),
    ],
    ids=str,
)
def test_a_name_that_is_no_identifier_is_refused(table: str, columns: dict) -> None:
    with pytest.raises(InvalidInputError):
        TableNames.checked(table or None, None, columns)


def test_what_is_written_is_bound_and_never_part_of_a_statement(table: Table) -> None:
    evil = "x'; DROP TABLE plugin_runners; --"
    table.add(f"{evil}/email", host=evil, port=5556, runtime_state="ready")
    assert list(table.rows()) == [f"{evil}/email#0"]


def test_a_row_that_is_refused_is_distinguished_from_a_database_that_is(database: Database) -> None:
    with pytest.raises(RowRefusedError, match=r"CHECK|check"), database.writing() as connection:
        connection.execute(
            sa.text("INSERT INTO plugin_runners (organization_id, plugin_id, port) VALUES ('o', 'p', 0)")
        )
    with pytest.raises(ConfigurationError, match="db upgrade"), database.reading() as connection:
        connection.execute(sa.text("SELECT * FROM no_such_table"))
