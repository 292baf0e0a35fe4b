"""What ran before there were leases becomes leases; what does not run is said, and stopped only when that is asked."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from runners_table import Table, drift
from servers import wait_until

from allocator.client.lease_files import LeaseFiles
from allocator.database.connection import Database
from allocator.database.upgrade import upgrade
from allocator.kernel.identity import identify
from allocator.kernel.socket_tables import listening_ports
from allocator.model.tables import TableNames

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from allocator import PoolSpec, PortAllocator
    from allocator.database.reconciler import Reconciler

ROOT = Path(__file__).parents[3]
WORKER = """
import socket, sys
listening = socket.socket()
listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listening.bind(("127.0.0.1", int(sys.argv[1].partition("=")[2])))
listening.listen()
sys.stdin.read()
"""


@pytest.fixture
def listener() -> Iterator[Callable[..., int]]:
    """Starts processes that listen, as workers of the manual days were started; returns their pids."""
    started: list[subprocess.Popen[bytes]] = []

    def start(port: int, org: str) -> int:
        arguments = [sys.executable, "-c", WORKER, f"--port={port}", f"--org-id={org}"]
        started.append(subprocess.Popen(arguments, stdin=subprocess.PIPE))
        wait_until(lambda: port in listening_ports(port, port), "the worker does not listen")
        return started[-1].pid

    yield start
    for process in started:
        process.communicate()


@pytest.fixture
def run(tmp_path: Path, redis_url: str, pool: PoolSpec, database_url: str):
    """Runs `allocator` on host web-1 and returns its exit status, data and messages."""

    def command(*arguments: str) -> tuple[int, str, str]:
        done = subprocess.run(
            [sys.executable, "-m", "allocator", *arguments],
            env={"XDG_STATE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "ALLOCATOR_REDIS_URL": redis_url,
                 "ALLOCATOR_POOL": pool.name, "ALLOCATOR_DATABASE_URL": database_url, "ALLOCATOR_HOST": "web-1",
                 "PATH": "/usr/bin:/bin"},
            cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stdout, done.stderr

    return command


@pytest.fixture
def nullable_table(database_url: str, ports: PortAllocator) -> Iterator[Table]:
    """A table that was there before portlease, whose columns all may be NULL."""
    with closing(Database.open(database_url)) as database:
        table = Table(database, ports.session.pool)
        table.run(
            "CREATE TABLE plugin_runners "
            "(pool TEXT, organization_id TEXT, plugin_id TEXT, instance INTEGER, port INTEGER)"
        )
        upgrade(database, TableNames())
        yield table


def test_a_bound_row_of_the_manual_days_becomes_a_lease_of_its_process(
    run, listener, table: Table, ports: PortAllocator, pool: PoolSpec, tmp_path: Path, reconciler: Reconciler
) -> None:
    pid = listener(pool.first, "org-1")
    table.add("org-1/email", port=pool.first, runtime_state="ready")
    code, out, _ = run("adopt", "--format", "json")
    assert code == 0
    assert [(row["worker"], row["what_was_done"]) for row in json.loads(out)] == [("org-1/email#0", "adopted")]
    (lease,) = ports.leases()
    assert (str(lease.worker), lease.host, lease.port, str(lease.state)) == (
        "org-1/email#0", "web-1", pool.first, "ready",
    )  # fmt: skip
    process = identify(pid)
    assert process is not None
    assert (lease.pid, lease.pid_started) == (pid, process.start_time)
    saved = LeaseFiles(tmp_path / "allocator" / "leases").load(pool.name, "web-1", pool.first)
    assert saved is not None
    assert saved.token
    assert ports.renew(saved)[0].fence == lease.fence
    row = table.rows()["org-1/email#0"]
    assert (row["host"], row["port"], row["fence"], row["pid"]) == ("web-1", pool.first, lease.fence, pid)
    assert drift(reconciler) == {}


@pytest.mark.parametrize("how", [("reconcile", "--once"), ("reconcile", "--dry-run")])
def test_the_first_pass_of_the_reconciler_adopts_and_a_dry_run_reports_it(
    run, listener, table: Table, ports: PortAllocator, pool: PoolSpec, how: tuple[str, str]
) -> None:
    pid = listener(pool.first, "org-1")
    table.add("org-1/email", port=pool.first, runtime_state="starting")
    code, out, err = run(*how, "--format", "json")
    if how[1] == "--once":
        assert code == 0
        assert f"adopted org-1/email#0 on web-1:{pool.first} (pid {pid})" in err
        assert [one.pid for one in ports.leases()] == [pid]
        assert table.rows()["org-1/email#0"]["pid"] == pid
    else:
        assert code == 1
        (found,) = json.loads(out)
        assert (found["kind"], found["action"]) == ("unknown-row", "adopt it as a lease")
        assert ports.leases() == []


def test_a_row_whose_port_is_not_bound_is_reported_and_stopped_only_when_asked(
    run, table: Table, ports: PortAllocator, pool: PoolSpec
) -> None:
    table.add("org-1/email", port=pool.first, runtime_state="ready")
    table.add("org-2/email", host="web-2", port=pool.first, runtime_state="ready")
    table.add("org-3/email", port=pool.first + 1, runtime_state="draining")
    before = table.rows()
    code, out, err = run("adopt", "--format", "json")
    assert code == 0
    assert [(row["worker"], row["what_was_done"]) for row in json.loads(out)] == [("org-1/email#0", "nothing")]
    assert "--apply" in err
    assert table.rows() == before
    assert run("adopt", "--apply")[0] == 0
    after = table.rows()
    assert after.pop("org-1/email#0")["runtime_state"] == "stopped"
    before.pop("org-1/email#0")
    assert after == before
    assert ports.leases() == []


def test_of_two_rows_with_one_port_the_command_line_of_the_process_decides(
    run, listener, table: Table, ports: PortAllocator, pool: PoolSpec
) -> None:
    listener(pool.first, "org-2")
    table.add("org-1/email", port=pool.first, runtime_state="ready")
    table.add("org-2/email", port=pool.first, runtime_state="ready")
    _, out, _ = run("adopt", "--format", "json")
    reported = {row["worker"]: row for row in json.loads(out)}
    assert reported["org-2/email#0"]["what_was_done"] == "adopted"
    assert reported["org-1/email#0"]["what_was_done"] == "nothing"
    assert "is of org-2/email#0" in reported["org-1/email#0"]["detail"]
    assert [str(one.worker) for one in ports.leases()] == ["org-2/email#0"]


def test_of_two_rows_that_nothing_distinguishes_none_is_adopted(
    run, listener, table: Table, ports: PortAllocator, pool: PoolSpec
) -> None:
    listener(pool.first, "someone")
    for org in ("org-1", "org-2"):
        table.add(f"{org}/email", port=pool.first, runtime_state="ready")
    code, out, err = run("adopt")
    assert (code, out.count("2 rows have its port")) == (1, 2)
    assert "2 rows were not taken over" in err
    assert run("adopt", "--apply")[0] == 1
    assert ports.leases() == []
    assert {row["runtime_state"] for row in table.rows().values()} == {"ready"}


def test_a_port_is_adopted_by_hand(run, listener, table: Table, ports: PortAllocator, pool: PoolSpec) -> None:
    pid = listener(pool.first + 3, "org-1")
    arguments = ("adopt", "--port", str(pool.first + 3), "--org", "org-1", "--plugin", "crm", "--instance", "2")
    code, _, err = run(*arguments)
    assert (code, err) == (0, "")
    (lease,) = ports.leases()
    assert (str(lease.worker), lease.port, lease.pid) == ("org-1/crm#2", pool.first + 3, pid)
    code, out, err = run(*arguments)
    assert (code, out) == (73, "")
    assert "already has a lease" in err
    assert run("release", str(lease.port))[0] == 0
    assert ports.leases() == []


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--port", "FREE", "--org", "o", "--plugin", "p"), 2, "nobody listens"),
        (("--port", "80", "--org", "o", "--plugin", "p"), 2, "outside pool"),
        (("--port", "abc", "--org", "o", "--plugin", "p"), 2, "not a port"),
        (("--port", "FREE", "--org", "o"), 2, "--plugin"),
        (("--org", "a b", "--port", "FREE", "--plugin", "p"), 2, "organisation"),
        (("--port", "FREE", "--org", "o", "--plugin", "p", "--apply"), 2, "--apply"),
        (("--ttl", "soon"), 2, "TTL"),
        (("--instance", "x", "--port", "FREE", "--org", "o", "--plugin", "p"), 2, "x"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_a_wrong_argument_is_one_line(run, table: Table, pool: PoolSpec, arguments, code: int, message: str) -> None:
    done = run("adopt", *(str(pool.first) if argument == "FREE" else argument for argument in arguments))
    assert done[:2] == (code, "")
    assert message in done[2]
    assert done[2].count("\n") == 1


def test_a_lease_that_redis_lost_is_stopped_when_asked_once_its_time_has_passed(
    run, listener, table: Table, ports: PortAllocator, pool: PoolSpec
) -> None:
    ended = "2001-01-01 00:00:00"
    listener(pool.first + 1, "org-2")
    for number, org in enumerate(("org-1", "org-2")):
        table.add(f"{org}/email", host="web-1", port=pool.first + number, runtime_state="ready", fence=7)
    table.run("UPDATE plugin_runners SET lease_expires_at = CAST(:ended AS " +
              ("TEXT)" if table.database.is_sqlite else "TIMESTAMPTZ)"), ended=ended)  # fmt: skip
    assert run("adopt")[0] == 0
    assert {row["runtime_state"] for row in table.rows().values()} == {"ready"}
    assert run("adopt", "--apply")[0] == 0
    assert {worker: state for worker, (_, _, state) in table.addresses().items()} == {
        "org-1/email#0": "stopped", "org-2/email#0": "ready",
    }  # fmt: skip


def test_a_row_that_is_not_stopped_is_not_reported_as_such(
    run, table: Table, ports: PortAllocator, pool: PoolSpec
) -> None:
    before = "BEFORE UPDATE ON plugin_runners FOR EACH ROW WHEN (OLD.organization_id = '{}') {}"
    if table.database.is_sqlite:
        table.run("CREATE TRIGGER drops " + before.format("org-1", "BEGIN SELECT RAISE(IGNORE); END"))
        table.run("CREATE TRIGGER refuses " + before.format("org-2", "BEGIN SELECT RAISE(ABORT, 'hands off'); END"))
    else:
        table.run("CREATE FUNCTION drops() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'")
        table.run(
            "CREATE FUNCTION refuses() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE EXCEPTION 'hands off'; END$$"
        )
        table.run("CREATE TRIGGER drops " + before.format("org-1", "EXECUTE FUNCTION drops()"))
        table.run("CREATE TRIGGER refuses " + before.format("org-2", "EXECUTE FUNCTION refuses()"))
    for number in (1, 2, 3):
        table.add(f"org-{number}/email", port=pool.first + number, runtime_state="ready")
    code, out, _ = run("adopt", "--apply", "--format", "json")
    assert code == 1
    reported = {row["worker"]: (row["what_was_done"], row["detail"]) for row in json.loads(out)}
    assert reported["org-1/email#0"][0] == reported["org-2/email#0"][0] == "nothing"
    assert "nothing was written: the table drops" in reported["org-1/email#0"][1]
    assert "nothing was written: the database refuses it (hands off)" in reported["org-2/email#0"][1]
    assert reported["org-3/email#0"][0] == "set to stopped"
    assert [row["runtime_state"] for row in table.rows().values()] == ["ready", "ready", "stopped"]


def test_a_row_without_an_instance_is_not_taken_for_the_first_one(
    run, listener, nullable_table: Table, ports: PortAllocator, pool: PoolSpec
) -> None:
    """The NULL of a table that was there before: it is no worker's, and its end would be that of instance 0."""
    table = nullable_table
    listener(pool.first, "org-1")
    listener(pool.first + 2, "org-2")
    table.add("org-1/email", port=pool.first, runtime_state="ready")
    table.add("org-1/email", instance=None, port=pool.first + 1, runtime_state="ready")
    table.add("org-2/email", instance=None, port=pool.first + 2, runtime_state="ready")
    table.add("org-3/email", instance=None, host="web-1", port=pool.first + 3, runtime_state="ready", fence=7)
    code, out, _ = run("adopt", "--apply", "--format", "json")
    assert code == 1
    reported = {(row["worker"], row["port"]): (row["what_was_done"], row["detail"]) for row in json.loads(out)}
    assert reported["org-1/email#0", pool.first][0] == "adopted"
    for org, port in (("org-1", pool.first + 1), ("org-2", pool.first + 2), ("org-3", pool.first + 3)):
        what, why = reported[f"{org}/email#NULL", port]
        assert (what, "instance is NULL" in why) == ("nothing", True)
    assert [lease.port for lease in ports.leases()] == [pool.first]
    rows = table.run("SELECT port, runtime_state FROM plugin_runners ORDER BY port")
    assert rows == [{"port": pool.first + number, "runtime_state": "ready"} for number in range(4)]


def test_rows_of_another_pool_are_named_when_this_one_has_none(run, table: Table) -> None:
    table.add("org-1/email", pool="sdk-v2", port=5556, runtime_state="ready")
    code, _, err = run("adopt")
    assert code == 0
    assert "1 in pool 'sdk-v2'; see --pool" in err
    assert "database: " in err.splitlines()[0]
