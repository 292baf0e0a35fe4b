"""`db upgrade`, `db check`, `db sql`; and databases that cannot be used: one line that says what to do."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import Allocator
    from postgres import Postgres


def test_a_table_is_checked_made_and_checked_again(allocator: Allocator, database_url: str) -> None:
    missing = allocator("db", "check", "--database-url", database_url)
    assert missing.code == 1
    assert "missing  table plugin_runners" in missing.out
    made = allocator("db", "upgrade", "--database-url", database_url)
    assert (made.code, "upgraded" in made.out) == (0, True)
    assert "added table plugin_runners" in made.err
    assert allocator("db", "check", "--database-url", database_url).out == "all well\n"
    assert "up to date" in allocator("db", "upgrade", "--database-url", database_url).out
    found = json.loads(allocator("db", "check", "--format", "json", "--database-url", database_url).out)
    assert found == {"fit": True, "missing": [], "findings": []}


def test_the_statements_can_be_run_by_someone_else(allocator: Allocator, postgres_url: str) -> None:
    script = allocator("db", "sql")
    assert script.code == 0
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(script.out)
    assert allocator("db", "check", ALLOCATOR_DATABASE_URL=postgres_url).code == 0
    assert allocator("db", "sql", ALLOCATOR_DATABASE_URL=postgres_url).out == ""
    assert "DATETIME" in allocator("db", "sql", "--dialect", "sqlite", ALLOCATOR_DATABASE_URL=postgres_url).out


def test_without_a_database_a_sqlite_file_serves_and_it_is_reported_once(allocator: Allocator) -> None:
    first = allocator("claim", "email", "--org", "org-1", "--record")
    assert first.err.count("no database is configured") == 1
    file = allocator.state / "allocator" / "plugin_runners.sqlite3"
    with sqlite3.connect(file) as connection:
        assert connection.execute("SELECT organization_id, port FROM plugin_runners").fetchall() == [
            ("org-1", int(first.out))
        ]
    connection.close()
    assert "configured" not in allocator("claim", "stripe", "--org", "org-1", "--record").err


def test_names_from_the_settings_file_are_used(allocator: Allocator, tmp_path: Path) -> None:
    (allocator.state / "allocator.toml").write_text(
        f'database_url = "sqlite:///{tmp_path}/x.db"\n'
        '[database]\ntable = "workers"\n[database.columns]\norganization_id = "org"\n'
    )
    assert "workers in" in allocator("db", "upgrade").out
    port = int(allocator("claim", "email", "--org", "org-1", "--record").out)
    with sqlite3.connect(tmp_path / "x.db") as connection:
        assert connection.execute("SELECT org, port FROM workers").fetchall() == [("org-1", port)]
    connection.close()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[database]\ncolour = 'red'\n", "colour"),
        ("[database]\ntable = 'a b'\n", "a b"),
        ("[database.columns]\nhost = 'port'\n", "one name"),
        ("[database.columns]\ncolour = 'x'\n", "not a column"),
        ("database_url = 5\n", "database_url"),
    ],
)
def test_a_wrong_settings_file_is_one_line(allocator: Allocator, text: str, message: str) -> None:
    (allocator.state / "allocator.toml").write_text(text)
    done = allocator("db", "check")
    assert (done.code, done.err.count("\n")) == (78, 1)
    assert message in done.err


URLS = [
    ("mysql://root@127.0.0.1/x", 78, "not a database that portlease knows"),
    ("nonsense", 78, "not a database"),
    ("postgresql://app:s3cret@127.0.0.1:notaport/x", 78, "cannot be read"),
    ("postgresql://app:s3cret@127.0.0.1:1/x", 69, "does not answer"),
    ("postgresql://app@nowhere.invalid/x", 69, "does not answer"),
    ("sqlite://", 78, "names no SQLite file"),
    ("sqlite:////nowhere/at/all/x.db", 78, "cannot be opened"),
    ("postgresql://app@127.0.0.1/x?nonsense=1", 78, "nonsense"),
    ("postgresql://app@127.0.0.1:1/x?password=s3cret&sslpassword=s3cret", 69, "?password=***&sslpassword=***"),
    ("postgresql://app@127.0.0.1:1/x?prepare_threshold=0", 69, "does not answer"),
    ("postgresql://app@127.0.0.1:1/x?passwd=s3cret", 78, "an option 'passwd'"),
    ("postgresql://app@127.0.0.1:1/x?autocommit=s3cret", 78, "an option 'autocommit'"),
    ("postgresql://app:with@s3cret@127.0.0.1:1/x", 78, "write it as %40"),
    ("sqlite:////tmp/x.db?timeout=s3cret", 78, "an option 'timeout'"),
]
NEEDING = [("db", "upgrade"), ("reconcile", "--once"), ("claim", "email", "--org", "o", "--record")]


@pytest.mark.parametrize("arguments", NEEDING, ids=" ".join)
@pytest.mark.parametrize(("url", "code", "message"), URLS, ids=[url for url, _, _ in URLS])
def test_a_wrong_url_is_one_line(
    allocator: Allocator, url: str, code: int, message: str, arguments: tuple[str, ...]
) -> None:
    done = allocator(*arguments, ALLOCATOR_DATABASE_URL=url, ALLOCATOR_CONNECT_TIMEOUT="2s")
    if url.startswith("sqlite:////nowhere") and arguments[0] != "db":
        message = "db upgrade"
    assert (done.code, done.out) == (code, "")
    assert message in done.err
    assert "s3cret" not in done.err
    assert done.err.count("\n") == 1
    assert json.loads(allocator("ls", "--format", "json").out) == []


@pytest.mark.parametrize("arguments", NEEDING[1:], ids=" ".join)
def test_a_table_that_is_missing_or_something_else_is_one_line(
    allocator: Allocator, postgres_url: str, arguments: tuple[str, ...]
) -> None:
    done = allocator(*arguments, ALLOCATOR_DATABASE_URL=postgres_url)
    assert (done.code, done.out) == (78, "")
    assert "db upgrade" in done.err
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("CREATE TABLE plugin_runners (id INTEGER)")
    other = allocator(*arguments, ALLOCATOR_DATABASE_URL=postgres_url)
    assert (other.code, other.out) == (78, "")
    assert "something else" in other.err
    assert done.err.count("\n") == other.err.count("\n") == 1
    assert json.loads(allocator("ls", "--format", "json").out) == []


@pytest.fixture
def locked_file(allocator: Allocator, tmp_path: Path) -> Iterator[str]:
    url = f"sqlite:///{tmp_path}/locked.db"
    assert allocator("db", "upgrade", ALLOCATOR_DATABASE_URL=url).code == 0
    other = sqlite3.connect(tmp_path / "locked.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    yield url
    other.execute("ROLLBACK")
    other.close()


def test_a_locked_file_is_one_line_and_nothing_is_claimed(allocator: Allocator, locked_file: str) -> None:
    for arguments in NEEDING[1:]:
        done = allocator(*arguments, ALLOCATOR_DATABASE_URL=locked_file)
        if arguments[0] == "reconcile":
            assert done.code == 0  # nothing differs, so nothing is written
            continue
        assert (done.code, done.out) == (69, "")
        assert "is locked by another process" in done.err
        assert done.err.count("\n") == 1
    assert json.loads(allocator("ls", "--format", "json").out) == []


def test_a_file_that_is_no_database_is_one_line(allocator: Allocator, tmp_path: Path) -> None:
    (tmp_path / "x.db").write_text("not a database at all, but long enough to be taken for one" * 30)
    done = allocator("db", "check", ALLOCATOR_DATABASE_URL=f"sqlite:///{tmp_path}/x.db")
    assert (done.code, done.err.count("\n")) == (78, 1)
    assert "not a SQLite database" in done.err


def role(postgres: Postgres, url: str, name: str, *grants: str) -> str:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"DROP OWNED BY {name}" if _has_role(connection, name) else f"CREATE ROLE {name} LOGIN")
        for grant in grants:
            connection.execute(grant)
    return url.replace("postgres@", f"{name}@")


def _has_role(connection: psycopg.Connection, name: str) -> bool:
    return connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (name,)).fetchone() is not None


def test_a_role_that_may_only_read_can_still_look(allocator: Allocator, postgres: Postgres, postgres_url: str) -> None:
    assert allocator("db", "upgrade", ALLOCATOR_DATABASE_URL=postgres_url).code == 0
    reader = role(postgres, postgres_url, "reader_only", "GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader_only")
    port = allocator("claim", "email", "--org", "org-1").out.strip()
    seen = allocator("reconcile", "--dry-run", "--format", "json", ALLOCATOR_DATABASE_URL=reader)
    assert seen.code == 1
    assert [(one["kind"], str(one["port"])) for one in json.loads(seen.out)] == [("missing-row", port)]
    checked = allocator("db", "check", ALLOCATOR_DATABASE_URL=reader)
    assert checked.code == 1
    assert "GRANT INSERT, UPDATE ON plugin_runners TO reader_only" in checked.out
    for arguments in (("reconcile", "--once"), ("claim", "stripe", "--org", "o", "--record")):
        done = allocator(*arguments, ALLOCATOR_DATABASE_URL=reader)
        assert (done.code, done.out) == (78, "")
        assert "permission denied" in done.err
        assert done.err.count("\n") == 1
    assert [one["port"] for one in json.loads(allocator("ls", "--format", "json").out)] == [int(port)]


def test_a_role_without_any_rights_is_one_line(allocator: Allocator, postgres: Postgres, postgres_url: str) -> None:
    assert allocator("db", "upgrade", ALLOCATOR_DATABASE_URL=postgres_url).code == 0
    nobody = role(postgres, postgres_url, "no_rights")
    for arguments in (("reconcile", "--dry-run"), ("db", "upgrade")):
        done = allocator(*arguments, ALLOCATOR_DATABASE_URL=nobody)
        assert (done.code, done.out) == (78, "")
        assert done.err.count("\n") == 1


def test_a_database_that_does_not_exist_is_one_line(allocator: Allocator, postgres: Postgres) -> None:
    done = allocator("db", "check", ALLOCATOR_DATABASE_URL=postgres.url("nowhere"))
    assert (done.code, done.err.count("\n")) == (78, 1)
    assert "does not exist" in done.err


@pytest.mark.parametrize("missing", ["sqlalchemy", "psycopg", "alembic"])
def test_a_missing_driver_is_one_line(allocator: Allocator, postgres_url: str, missing: str) -> None:
    program = (
        f"import sys, importlib.util as u; f = u.find_spec; sys.modules[{missing!r}] = None\n"
        f"u.find_spec = lambda name, *rest: None if name == {missing!r} else f(name, *rest)\n"
        "from allocator.__main__ import main; main()"
    )
    arguments = ("db", "upgrade", "--database-url", postgres_url)
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=allocator.environment(),
        cwd=allocator.state,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (78, "")
    assert "portlease[sql]" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_claim_without_record_loads_no_sqlalchemy(allocator: Allocator) -> None:
    program = (
        "import sys; from allocator.__main__ import status_of\n"
        "status_of(['claim', 'email', '--org', 'o']); print([m for m in sys.modules if m.startswith('sqlalchemy')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=allocator.environment() | {"PYTHONPATH": str(Path(__file__).parents[3])},
        capture_output=True, text=True, check=False, cwd=Path(__file__).parents[3],
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "[]"
