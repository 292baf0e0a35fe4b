"""`reconcile --watch`: rows follow leases, outages are waited out, one leads and the next one takes over."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Self

import psycopg
import pytest
from postgres import Postgres
from runners_table import Table
from servers import Server, client_of, free_port, wait_until

from allocator import PoolSpec, PortAllocator
from allocator.database.connection import Database
from allocator.database.upgrade import upgrade
from allocator.model.tables import TableNames

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[3]
WAIT_S = 30.0


class Watcher:
    """One `allocator reconcile --watch` and what it says."""

    def __init__(self, state: Path, *arguments: str, **variables: str) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("ALLOCATOR_")}
        own = {"XDG_STATE_HOME": str(state), "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "allocator", "reconcile", "--watch", *arguments],
            env=kept | own | variables,
            cwd=state,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        self.lines: list[str] = []
        self._heard = threading.Condition()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._heard:
                self.lines.append(line.strip())
                self._heard.notify_all()

    def message(self, text: str) -> Self:
        """Wait until it has said something."""
        with self._heard:
            found = self._heard.wait_for(lambda: any(text in line for line in self.lines), WAIT_S)
        assert found, self.lines
        assert not any("Traceback" in line for line in self.lines), self.lines
        return self

    def end(self, with_signal: int = signal.SIGTERM) -> int:
        self.process.send_signal(signal.SIGCONT)
        self.process.send_signal(with_signal)
        status = self.process.wait(WAIT_S)
        self._thread.join()
        return status

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self.process.poll() is None:
            self.end(signal.SIGKILL)
        self._thread.join()
        assert self.process.stderr is not None
        self.process.stderr.close()


@pytest.fixture
def watching(ports: PortAllocator, database: Database, database_url: str, redis_url: str, tmp_path: Path):
    """Starts watchers of the test's pool and database."""
    started: list[Watcher] = []

    def start(*arguments: str) -> Watcher:
        variables = {
            "ALLOCATOR_REDIS_URL": redis_url,
            "ALLOCATOR_POOL": ports.session.pool,
            "ALLOCATOR_DATABASE_URL": database_url,
            "ALLOCATOR_HOST": f"host-{len(started)}",
        }
        started.append(Watcher(tmp_path, *arguments, **variables))
        return started[-1]

    yield start
    for one in started:
        with one:
            pass


def addresses_are(table: Table, leases) -> bool:
    return {(row["host"], row["port"], row["runtime_state"]) for row in table.rows().values()} >= {
        (one.host, one.port, str(one.state)) for one in leases
    }


def test_rows_follow_claims_and_releases_long_before_the_next_pass(watching, ports: PortAllocator, table: Table):
    watching("--every", "1h").message("leading")
    first = ports.claim("email", org="org-1")
    wait_until(lambda: addresses_are(table, [first]), "the claim did not arrive")
    ports.release(first)
    wait_until(lambda: table.addresses()["org-1/email#0"][2] == "stopped", "the release did not arrive")


def test_a_stand_by_takes_over_when_the_leader_ends_in_order(watching, ports: PortAllocator, table: Table):
    one = watching("--every", "1h").message("leading")
    two = watching("--every", "1h").message("standing by: host-0")
    assert one.end() == 0
    assert json.loads(one.lines[-1])["message"] == "stopped"
    two.message("leading")
    lease = ports.claim("email", org="org-1")
    wait_until(lambda: addresses_are(table, [lease]), "the new leader does not follow")


def test_a_stand_by_takes_over_from_a_leader_that_was_killed_or_stopped(watching, ports: PortAllocator, table: Table):
    one = watching("--every", "1h").message("leading")
    two = watching("--every", "1h").message("standing by")
    os.kill(one.process.pid, signal.SIGSTOP)
    client_of(ports.store).delete(*leader_keys(ports))  # as its TTL does, without waiting for it
    two.message("leading")
    lease = ports.claim("email", org="org-1")
    wait_until(lambda: addresses_are(table, [lease]), "the new leader does not follow")
    before = table.rows()
    os.kill(one.process.pid, signal.SIGCONT)
    one.message("standing by: host-1")
    assert table.rows() == before
    assert two.end(signal.SIGKILL) == -signal.SIGKILL
    client_of(ports.store).delete(*leader_keys(ports))
    with one._heard:
        assert one._heard.wait_for(lambda: sum("leading the" in line for line in one.lines) == 2, WAIT_S), one.lines


def leader_keys(ports: PortAllocator) -> list[str]:
    base = f"alloc:{{{ports.session.pool}}}"
    return [f"{base}:leader", f"{base}:tokens:!leader"]


def test_only_one_leads_and_once_states_who(
    watching, ports: PortAllocator, database_url: str, redis_url: str, tmp_path
):
    watching("--every", "1h").message("leading")
    done = subprocess.run(
        [sys.executable, "-m", "allocator", "reconcile", "--once"],
        env=os.environ | {
            "XDG_STATE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "ALLOCATOR_REDIS_URL": redis_url,
            "ALLOCATOR_POOL": ports.session.pool, "ALLOCATOR_DATABASE_URL": database_url,
        },
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 73
    assert "host-0 (pid" in done.stderr
    assert done.stderr.count("\n") == 1


def test_events_that_were_lost_are_made_up_by_the_next_pass(watching, ports: PortAllocator, table: Table):
    watching("--every", "300ms").message("leading")
    client, stream = client_of(ports.store), f"alloc:{{{ports.session.pool}}}:events"
    leases = []
    for number in range(5):
        leases.append(ports.claim("email", org=f"org-{number}"))
        client.delete(stream)
    wait_until(lambda: addresses_are(table, leases), "the passes did not make up for the events")


def test_garbage_among_the_events_does_no_harm(watching, ports: PortAllocator, table: Table):
    one = watching("--every", "1h").message("leading")
    client, stream = client_of(ports.store), f"alloc:{{{ports.session.pool}}}:events"
    for fields in (
        {"a": "b"},
        {"worker": "x"},
        {"type": "granted", "worker": "org-9/crm#0"},
        {"worker": b"\xff/\x00#1"},
    ):
        client.xadd(stream, fields)
    lease = ports.claim("email", org="org-1")
    wait_until(lambda: addresses_are(table, [lease]), "the claim did not arrive")
    assert list(table.rows()) == ["org-1/email#0"]
    assert one.process.poll() is None


def test_metrics_are_served_while_it_watches(watching, ports: PortAllocator, table: Table):
    address = f"127.0.0.1:{free_port()}"
    table.add("org-9/email", host="web-7", port=5556, runtime_state="ready", fence=5)
    watching("--every", "200ms", "--metrics-listen", address).message("leading")
    ports.claim("email", org="org-1")

    def metrics() -> str:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as answer:
            return answer.read().decode()

    wait_until(lambda: re.search(r"reconcile_leases\{.*\} 1\.0", metrics()), "the pass was not counted")
    wait_until(lambda: "allocator_reconcile_event_lag_seconds{" in metrics(), "no event was followed")
    text = metrics()
    assert re.search(r'allocator_reconcile_drift\{kind="unknown-row",pool=".*"\} 1\.0', text)
    assert re.search(r"allocator_reconcile_leader\{.*\} 1\.0", text)
    assert re.search(r"allocator_reconcile_rows_written_total\{.*\} 1\.0", text)
    assert "allocator_reconcile_pass_seconds_bucket" in text
    assert 0 <= float(re.search(r"allocator_reconcile_event_lag_seconds\{.*\} (\S+)", text)[1]) < 3_600


def test_what_cannot_be_served_or_asked_is_one_line(watching):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = taken.getsockname()[1]
        for arguments, code in (
            (("--metrics-listen", f"127.0.0.1:{number}"), 78),
            (("--metrics-listen", "nonsense"), 2),
            (("--every", "0s"), 2),
            (("--once",), 2),
        ):
            one = watching(*arguments)
            assert one.process.wait(WAIT_S) == code
            one._thread.join()
            assert len(one.lines) == 1, one.lines


@pytest.fixture
def own_postgres() -> Iterator[Postgres]:
    with Postgres() as server:
        yield server


def test_a_database_that_is_away_is_waited_for_and_the_backlog_is_one_diff(
    own_postgres: Postgres, ports: PortAllocator, redis_url: str, tmp_path: Path
):
    url = own_postgres.new_database()
    database = Database.open(url)
    upgrade(database, TableNames())
    database.close()
    variables = {
        "ALLOCATOR_REDIS_URL": redis_url, "ALLOCATOR_POOL": ports.session.pool, "ALLOCATOR_DATABASE_URL": url,
        "ALLOCATOR_CONNECT_TIMEOUT": "1s",
    }  # fmt: skip
    with Watcher(tmp_path, "--every", "1h", **variables) as watcher:
        watcher.message("leading")
        kept = ports.claim("email", org="org-kept")
        table = Table(Database.open(url), ports.session.pool)
        wait_until(lambda: addresses_are(table, [kept]), "the claim did not arrive")
        table.database.close()
        own_postgres.stop(signal.SIGKILL)
        leases = [ports.claim("email", org=f"org-{number}") for number in range(20)]
        ports.release(kept)
        watcher.message("waiting for it")
        own_postgres.start()
        watcher.message("are equal")
        assert addresses_are(table, leases)
        assert table.addresses()["org-kept/email#0"][2] == "stopped"
        later = ports.claim("stripe", org="org-later")
        wait_until(lambda: addresses_are(table, [later]), "events are not followed after the outage")
        table.database.close()


def test_a_database_that_is_away_at_the_start_is_waited_for(
    own_postgres: Postgres, ports: PortAllocator, redis_url: str, tmp_path: Path
):
    url = own_postgres.new_database()
    database = Database.open(url)
    upgrade(database, TableNames())
    database.close()
    own_postgres.stop()
    lease = ports.claim("email", org="org-1")
    variables = {
        "ALLOCATOR_REDIS_URL": redis_url, "ALLOCATOR_POOL": ports.session.pool, "ALLOCATOR_DATABASE_URL": url,
    }  # fmt: skip
    with Watcher(tmp_path, **variables) as watcher:
        watcher.message("waiting for it")
        own_postgres.start()
        table = Table(Database.open(url), ports.session.pool)
        wait_until(lambda: addresses_are(table, [lease]), "the pass was not made")
        table.database.close()


def test_a_redis_that_is_away_is_waited_for(tmp_path: Path, postgres_url: str):
    database = Database.open(postgres_url)
    upgrade(database, TableNames())
    spec = PoolSpec(name="p", first=14_000, last=14_020)
    with Server() as first:
        first.ready()
        port = first.port
        with PortAllocator.from_url(first.url, pool="p", host="web-1") as ports:
            ports.apply_pool(spec)
        variables = {
            "ALLOCATOR_REDIS_URL": first.url, "ALLOCATOR_POOL": "p", "ALLOCATOR_DATABASE_URL": postgres_url,
            "ALLOCATOR_CONNECT_TIMEOUT": "500ms",
        }  # fmt: skip
        watcher = Watcher(tmp_path, "--every", "1h", **variables)
        watcher.message("leading")
    with watcher:
        watcher.message("waiting for it")
        with Server("--port", str(port)) as second:
            second.port = port
            second.ready()
            with PortAllocator.from_url(second.url, pool="p", host="web-1") as ports:
                ports.apply_pool(spec)
                lease = ports.claim("email", org="org-1")
            table = Table(database, "p")
            wait_until(lambda: addresses_are(table, [lease]), "the leases of the new Redis did not arrive")
            watcher.end()
    database.close()


def test_an_idle_transaction_of_a_paused_writer_is_ended_by_the_server(postgres_url: str):
    """A leader that is stopped in the middle of a write blocks no other for longer than the limit."""
    database = Database.open(postgres_url)
    with database.writing() as connection:
        limit = connection.exec_driver_sql("SHOW idle_in_transaction_session_timeout").scalar_one()
        lock = connection.exec_driver_sql("SHOW lock_timeout").scalar_one()
    assert (limit, lock) == ("5s", "5s")
    database.close()
    with psycopg.connect(postgres_url) as other:
        assert other.execute("SHOW idle_in_transaction_session_timeout").fetchone() == ("0",)
