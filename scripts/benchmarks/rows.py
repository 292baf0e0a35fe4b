"""What a table of a million rows takes to be upgraded, checked and compared, in PostgreSQL and in SQLite.

The rows are an application's: uuid keys, foreign keys, mixed case, states of its own, several rows of some workers.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa
from postgres import Postgres
from their_table import TOML, make_tables

from allocator.database.connection import Database
from benchmarks.servers import server
from benchmarks.table import Row

ROOT = Path(__file__).parents[2]
ROWS, FEW_ROWS = 1_000_000, 20_000
SECONDS, PEAK_MB = 60, 64
COMMANDS = ("db upgrade", "db check", "reconcile --dry-run")
PLUGINS, ORGANIZATIONS = 50, 19_990
_SERIES = "WITH RECURSIVE s(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM s WHERE n < {last}) "
_NAMES = (
    "INSERT INTO plugins (id, \"packageName\") {series} SELECT {key}, '@hay/plugin-' || n FROM s",
    "INSERT INTO organizations (id, slug) {series} SELECT {key}, 'org-' || n FROM s",
)
_WORKERS = (
    'INSERT INTO plugin_instances ("organizationId", "pluginId", "workerPort", "runtimeState") {series} '
    "SELECT o.id, p.id, 5556 + n % 44, CASE n % 5 WHEN 3 THEN 'RUNNING' WHEN 4 THEN 'FAILED' ELSE 'STOPPED' END "
    "FROM s JOIN plugins p ON p.\"packageName\" = '@hay/plugin-' || (n % {plugins}) "
    "JOIN organizations o ON o.slug = 'org-' || ((n / {plugins}) % {organizations})"
)
_MEASURED = """
import json, resource, subprocess, sys, time
began = time.perf_counter()
done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
took = time.perf_counter() - began
print(json.dumps([done.returncode, took, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024, done.stderr]))
"""
"""Runs a command from a small process: the peak of a child begins with that of its parent."""


@dataclass(frozen=True)
class Run:
    """What a command took, as a whole process."""

    command: str
    database: str
    rows: int
    seconds: float
    peak_mb: float


def fill(url: str, rows: int) -> None:
    """Make the application's tables, with their rows."""
    database = Database.open(url)
    make_tables(database)
    key = "lower(hex(randomblob(16)))" if database.is_sqlite else "gen_random_uuid()"
    wanted = zip((*_NAMES, _WORKERS), (PLUGINS, ORGANIZATIONS, rows), strict=True)
    with database.writing(limit_s=900) as connection:
        if database.is_sqlite:
            connection.execute(sa.text("CREATE INDEX by_slug ON organizations (slug)"))
        for statement, count in wanted:
            series = _SERIES.format(last=count - 1)
            text = statement.format(series=series, key=key, plugins=PLUGINS, organizations=ORGANIZATIONS)
            connection.exec_driver_sql(text)
    database.close()


def measured(kind: str, url: str, redis_url: str, rows: int, folder: Path) -> list[Run]:
    """Run the commands one after the other."""
    (folder / "allocator.toml").write_text(TOML.format(url=url))
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ALLOCATOR_")}
    environment = kept | {
        "XDG_STATE_HOME": str(folder), "PYTHONPATH": str(ROOT), "ALLOCATOR_REDIS_URL": redis_url,
        "ALLOCATOR_HOST": "bench",
    }  # fmt: skip
    found = []
    for command in COMMANDS:
        arguments = [sys.executable, "-I", "-S", "-c", _MEASURED, sys.executable, "-m", "allocator", *command.split()]
        done = subprocess.run(arguments, env=environment, cwd=folder, capture_output=True, text=True, check=True)
        status, seconds, peak_mb, printed = json.loads(done.stdout)
        if status not in {0, 1}:
            raise SystemExit(f"allocator {command}: exit {status}: {printed}")
        found.append(Run(command, kind, rows, seconds, peak_mb))
    return found


def figures(binary: str | None, *, quick: bool) -> list[Run]:
    """Measure in both databases."""
    rows, found = FEW_ROWS if quick else ROWS, []
    for kind in ("PostgreSQL", "SQLite"):
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-rows-")))
            redis = stack.enter_context(server(binary))
            url = f"sqlite:///{folder}/rows.sqlite3"
            if kind == "PostgreSQL":
                url = stack.enter_context(Postgres()).new_database()
            fill(url, rows)
            found += measured(kind, url, redis["unix"], rows, folder)
    return found


def rows(found: list[Run]) -> list[Row]:
    """Return the lines of the table."""
    table = []
    for one in found:
        what = f"`{one.command}`, {one.database}, {one.rows:,} rows"
        is_bound = one.rows == ROWS and one.command == "db upgrade"
        within = {"target": f"≤ {SECONDS} s", "met": one.seconds <= SECONDS} if is_bound else {}
        table.append(Row(what, f"{one.seconds:.1f} s", "", **within))
        table.append(Row("its peak memory", f"{one.peak_mb:.0f} MB", "", f"≤ {PEAK_MB} MB", one.peak_mb <= PEAK_MB))
    return table
