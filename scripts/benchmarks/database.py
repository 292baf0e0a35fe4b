"""What the reconciler takes, on a PostgreSQL of the benchmark's own.

How soon a claim's row is committed, how soon an outage is made up for, and what a pass over a whole fleet costs in
time and memory.
"""

from __future__ import annotations

import os
import secrets
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
from postgres import Postgres
from redis import Redis

from allocator.database.connection import Database
from allocator.database.fenced import FencedRows
from allocator.database.layout import make_layout
from allocator.database.upgrade import upgrade
from allocator.kernel.answers import UnseenAnswers
from allocator.model.names import WorkerId
from allocator.model.pools import SDK_V2, PoolSpec
from allocator.model.tables import TableNames
from allocator.operations import listing
from allocator.operations.attempt import ClaimRequest
from allocator.operations.claim import claim
from allocator.operations.context import Context
from allocator.operations.pools import apply_pool
from allocator.protocol.wire import ScriptCall, script
from allocator.store.blocking import Store
from benchmarks.servers import server
from benchmarks.table import Row
from benchmarks.wire import load

if TYPE_CHECKING:
    from collections.abc import Iterator

    from allocator.model.leases import Lease
    from allocator.operations.steps import Operation

ROOT = Path(__file__).parents[2]
RATE = 100
FLEET = replace(SDK_V2, ttl_ms=6 * 3_600_000, cooldown_ms=0)
WIDE = PoolSpec(name="wide", first=2_000, last=61_999, cooldown_ms=0, ttl_ms=6 * 3_600_000)
PIPELINE = 500
DIFFERING = 1_000
"""One in so many leases and rows differs in the pass that is measured."""


class Fleet:
    """Leases of many hosts in one Redis, and their rows in one database.

    Args:
        redis_url: An empty Redis.
        postgres: A PostgreSQL; the fleet gets a database of its own.
    """

    def __init__(self, redis_url: str, postgres: Postgres) -> None:
        self.redis_url, self.url = redis_url, postgres.new_database()
        self.store, self.redis, self.kernel = (
            Store.open(redis_url),
            Redis.from_url(redis_url, protocol=2),
            UnseenAnswers(),
        )
        self.names = TableNames()
        self.database = Database.open(self.url)
        upgrade(self.database, self.names)
        self.redis.flushall()

    def context(self, host: str, pool: PoolSpec) -> Context:
        """Return a caller on a host."""
        return Context(
            host=host,
            identity=f"{'m' * 16} {'b' * 36} 4026531840",
            clock=time.monotonic,
            new_token=lambda: secrets.token_hex(16),
            rules={pool.name: pool},
        )

    def run(self, operation: Operation[Any]) -> Any:
        """Run an operation as the client does, without asking the kernel."""
        from allocator.client.blocking import drive

        return drive(operation, self.store, self.kernel)

    def claim(self, context: Context, pool: PoolSpec, worker: WorkerId) -> Lease:
        """Claim a port."""
        return self.run(claim(context, ClaimRequest(pool=pool.name, worker=worker)))[0]

    def fill(self, hosts: int) -> None:
        """Claim all ports of the pool on each host, in pipelines."""
        self.run(apply_pool(FLEET))
        pipeline = self.redis.pipeline(transaction=False)
        load(self.redis)
        for number in range(hosts):
            context = self.context(f"host-{number:05}", FLEET)
            for at in range(FLEET.size):
                worker = WorkerId(f"org-{number:05}", f"plugin-{at}")
                call = first_call(claim(context, ClaimRequest(pool=FLEET.name, worker=worker)))
                pipeline.evalsha(script(call.script).sha1, len(call.keys), *call.keys, *call.args)
            if len(pipeline) >= PIPELINE:
                pipeline.execute()
        pipeline.execute()

    def copy_rows(self) -> int:
        """Write the rows of all leases, faster than a reconciler would."""
        layout = make_layout(self.names)
        rows = FencedRows(layout, FLEET.name)
        columns = [column.name for column in layout.runners.columns]
        count = 0
        with psycopg.connect(self.url) as connection, connection.cursor() as cursor:
            with cursor.copy(f"COPY plugin_runners ({', '.join(columns)}) FROM STDIN") as copy:
                for host in self.run(listing.namespaces(FLEET.name)):
                    for view in self.run(listing.ports(FLEET.name, host)):
                        values = rows.values((view.lease.org, view.lease.plugin), view.lease, time.time())
                        copy.write_row([moment(name, values[name]) for name in columns])
                        count += 1
            cursor.execute("ANALYZE plugin_runners")
        return count

    def differ(self, count: int) -> None:
        """Make so many leases and rows differ: other states, rows that are missing, rows at other ports."""
        with psycopg.connect(self.url) as connection:
            where = "ctid IN (SELECT ctid FROM plugin_runners ORDER BY md5(organization_id || plugin_id) LIMIT %s)"
            connection.execute(f"DELETE FROM plugin_runners WHERE {where}", (count // 3,))
            connection.execute(f"UPDATE plugin_runners SET fence = 1, port = port + 1000 WHERE {where}", (count // 3,))
            connection.execute(
                f"UPDATE plugin_runners SET runtime_state = 'ready' WHERE {where}", (count - count // 3,)
            )

    def reconcile(self) -> tuple[float, float]:
        """Make one pass in a process of its own; return its seconds and its peak memory in MB."""
        with tempfile.TemporaryDirectory(prefix="bench-state-") as state:
            began = time.perf_counter()
            process = subprocess.Popen(
                [sys.executable, "-m", "allocator", "reconcile", "--once"],
                env=self.environment(state, FLEET),
                cwd=ROOT,
                stdout=subprocess.DEVNULL,
            )
            _, status, usage = os.wait4(process.pid, 0)
            took = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"allocator reconcile --once: exit {process.returncode}")
        return took, usage.ru_maxrss / 1_024

    def environment(self, state: str, pool: PoolSpec) -> dict[str, str]:
        """Return the variables that a command of this fleet goes by."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("ALLOCATOR_")}
        return kept | {
            "XDG_STATE_HOME": state,
            "ALLOCATOR_REDIS_URL": self.redis_url,
            "ALLOCATOR_DATABASE_URL": self.url,
            "ALLOCATOR_POOL": pool.name,
            "ALLOCATOR_HOST": "bench",
        }

    @contextmanager
    def watcher(self, pool: PoolSpec) -> Iterator[None]:
        """Run `reconcile --watch` beside the block, which begins once it leads."""
        with tempfile.TemporaryDirectory(prefix="bench-state-") as state:
            process = subprocess.Popen(
                [sys.executable, "-m", "allocator", "reconcile", "--watch"],
                env=self.environment(state, pool),
                cwd=ROOT,
                stderr=subprocess.PIPE,
                text=True,
            )
            assert process.stderr is not None
            process.stderr.readline()
            drain = threading.Thread(target=process.stderr.read)
            drain.start()
            try:
                yield
            finally:
                process.terminate()
                process.wait()
                drain.join()
                process.stderr.close()

    def live_rows(self) -> int:
        """Return how many rows are live."""
        with psycopg.connect(self.url) as connection:
            row = connection.execute("SELECT count(*) FROM plugin_runners WHERE runtime_state = 'starting'").fetchone()
        return int(row[0]) if row else 0

    def close(self) -> None:
        """Close all connections."""
        self.database.close()
        self.store.close()
        self.redis.close()


def moment(name: str, value: Any) -> Any:
    """Return a value as COPY takes it."""
    from datetime import UTC, datetime

    return datetime.fromtimestamp(value, tz=UTC) if name.endswith("_at") and value is not None else value


def first_call(operation: Operation[Any]) -> ScriptCall:
    """Return the first script that an operation runs."""
    step = next(operation)
    here = UnseenAnswers()
    while not isinstance(step, ScriptCall):
        step = operation.send(here.answer(step))
    operation.close()
    return step


class Arrivals(threading.Thread):
    """Hears of each row when its transaction is committed, through a trigger's notification."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.at: dict[str, float] = {}
        self._connection = psycopg.connect(url, autocommit=True)
        self._connection.execute(
            "CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN PERFORM pg_notify('rows', NEW.organization_id); RETURN NEW; END $$;"
            "CREATE TRIGGER tell AFTER INSERT ON plugin_runners FOR EACH ROW EXECUTE FUNCTION tell(); LISTEN rows"
        )

    def run(self) -> None:
        """Listen until stopped."""
        for notice in self._connection.notifies():
            if notice.payload == "end":
                return
            self.at[notice.payload] = time.perf_counter()

    def end(self, url: str) -> None:
        """End the thread."""
        with psycopg.connect(url, autocommit=True) as other:
            other.execute("NOTIFY rows, 'end'")
        self.join()
        self._connection.close()


@dataclass(frozen=True)
class Latency:
    """How long rows took to be committed after the reply to their claims, in milliseconds."""

    claims: int
    median_ms: float
    p99_ms: float
    worst_ms: float


def latency(fleet: Fleet, claims: int) -> Latency:
    """Claim 100 times a second while a reconciler watches."""
    fleet.run(apply_pool(WIDE))
    arrivals, context = Arrivals(fleet.url), fleet.context("bench", WIDE)
    arrivals.start()
    replied: dict[str, float] = {}
    with fleet.watcher(WIDE):
        began = time.perf_counter()
        for number in range(claims):
            time.sleep(max(0.0, began + number / RATE - time.perf_counter()))
            fleet.claim(context, WIDE, WorkerId(f"org-{number}", "crm"))
            replied[f"org-{number}"] = time.perf_counter()
        deadline = time.perf_counter() + 60
        while len(arrivals.at) < claims and time.perf_counter() < deadline:
            time.sleep(0.01)
    arrivals.end(fleet.url)
    took = sorted((arrivals.at[org] - at) * 1_000 for org, at in replied.items())
    return Latency(claims, statistics.median(took), took[int(len(took) * 0.99)], took[-1])


def outage(fleet: Fleet, postgres: Postgres, *, claims: int, seconds: float) -> float:
    """Kill the database for a while, claim meanwhile; return the seconds from its return until all is equal."""
    fleet.run(apply_pool(WIDE))
    context = fleet.context("bench", WIDE)
    fleet.claim(context, WIDE, WorkerId("org-before", "crm"))
    with fleet.watcher(WIDE):
        while fleet.live_rows() < 1:
            time.sleep(0.05)
        postgres.stop(signal.SIGKILL)
        began = time.perf_counter()
        for number in range(claims):
            fleet.claim(context, WIDE, WorkerId(f"org-{number}", "mail"))
        time.sleep(max(0.0, began + seconds - time.perf_counter()))
        postgres.start()
        returned = time.perf_counter()
        while fleet.live_rows() < claims + 1:
            time.sleep(0.02)
        return time.perf_counter() - returned


@dataclass(frozen=True)
class Pass:
    """What one pass over a fleet took, as a whole process."""

    leases: int
    seconds: float
    peak_mb: float


def whole_pass(redis_url: str, postgres: Postgres, hosts: int) -> Pass:
    """Measure one pass over 44 leases and rows on each host, of which 0.1 % differ."""
    fleet = Fleet(redis_url, postgres)
    fleet.fill(hosts)
    leases = fleet.copy_rows()
    fleet.differ(leases // DIFFERING)
    seconds, peak_mb = fleet.reconcile()
    fleet.close()
    return Pass(leases, seconds, peak_mb)


def figures(binary: str | None, *, quick: bool) -> dict[str, Any]:
    """Return all figures of the database's side."""
    found: dict[str, Any] = {}
    with Postgres() as postgres, server(binary) as address:
        fleet = Fleet(address["unix"], postgres)
        found["latency"] = latency(fleet, 300 if quick else 3_000)
        fleet.close()
        fleet = Fleet(address["unix"], postgres)
        claims, seconds = (100, 2.0) if quick else (1_000, 30.0)
        found["outage"] = {
            "claims": claims,
            "seconds": seconds,
            "caught_up_s": outage(fleet, postgres, claims=claims, seconds=seconds),
        }
        fleet.close()
        found["passes"] = [
            whole_pass(address["unix"], postgres, hosts) for hosts in ((100,) if quick else (1_000, 10_000))
        ]
    return found


def rows(found: dict[str, Any]) -> list[Row]:
    """Return the lines of the table."""
    late, away = found["latency"], found["outage"]
    what = f"from a claim's reply to its committed row, PostgreSQL, {RATE} claims a second ({late.claims:,} claims)"
    table = [
        Row(f"{what}: median", f"{late.median_ms:.0f} ms", "", "≤ 100 ms", late.median_ms <= 100),
        Row(
            "the same: 99 %", f"{late.p99_ms:.0f} ms", f"at most {late.worst_ms:.0f}", "≤ 1,000 ms",
            late.p99_ms <= 1_000,
        ),
        Row(
            f"database away for {away['seconds']:.0f} s with {away['claims']:,} claims: equal again after",
            f"{away['caught_up_s']:.1f} s", "", "≤ 5 s", away["caught_up_s"] <= 5,
        ),
    ]  # fmt: skip
    for one in found["passes"]:
        whole = one.leases >= 440_000
        table += [
            Row(f"a pass over {one.leases:,} leases and rows, 0.1 % differing, whole process",
                f"{one.seconds:.1f} s", "", "≤ 30 s" if whole else "", one.seconds <= 30 if whole else None),
            Row("its peak memory", f"{one.peak_mb:,.0f} MB", "", "≤ 1,000 MB" if whole else "",
                one.peak_mb <= 1_000 if whole else None),
        ]  # fmt: skip
    return table
