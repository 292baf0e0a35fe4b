"""PgBouncer in transaction mode: each transaction is on another session, and each command does what it does without."""

from __future__ import annotations

import json
import re
import socket
import threading
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import TYPE_CHECKING

import httpx
import psycopg
from runners_table import Table
from servers import client_of
from supervised import finish
from watchers import NAMES, Watching, wait_until

from allocator import DatabaseRecorder, PortAllocator
from allocator.database.connection import Database
from allocator.database.leader import Leader
from allocator.database.reconciler import Reconciler, Report
from allocator.database.upgrade import open_layout, upgrade
from allocator.model.states import LeaseState

if TYPE_CHECKING:
    from supervised import Fleet


def test_all_works_through_a_pooler_that_gives_each_transaction_another_session(
    pooled: str, ports: PortAllocator, redis_url: str
) -> None:
    with closing(Database.open(pooled)) as database, ExitStack() as stack:
        upgrade(database, NAMES)
        table = Table(database, ports.session.pool)
        watching = stack.enter_context(Watching(redis_url, ports.session.pool, database, every_s=0.1))
        recorders = [stack.enter_context(DatabaseRecorder.open(f"{pooled}?prepare_threshold=0")) for _ in range(4)]
        leases, errors = [], []

        def claims(number: int) -> None:
            try:
                kept = PortAllocator(ports.store, ports.session, recorder=recorders[number])
                leases.extend(kept.claim("email", org=f"org-{number}-{again}", record=True) for again in range(9))
            except Exception as error:  # noqa: BLE001  # shown by the test
                errors.append(error)

        threads = [threading.Thread(target=claims, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert errors == []
        assert len(leases) == 36
        for lease in leases:
            ports.renew(replace(lease, state=LeaseState.READY), rewrite=True)
        states = {(lease.host, lease.port, "ready") for lease in leases}
        wait_until(lambda: set(table.addresses().values()) == states, "the watcher does not follow", 60)
        assert watching.error is None
        assert not any("waiting" in line for line in watching.lines), watching.lines


def test_settings_that_another_client_of_a_pooler_left_behind_do_no_harm(pooled: str, ports: PortAllocator) -> None:
    with closing(Database.open(pooled)) as database:
        upgrade(database, NAMES)
        layout = open_layout(database, NAMES)
        lease = ports.claim("email", org="org-1")
        for _ in range(4):
            with psycopg.connect(pooled, autocommit=True, prepare_threshold=None) as other:
                other.execute("SET search_path TO pg_temp")
                other.execute("SET bytea_output TO escape")
        Reconciler(ports, database, layout, leader=Leader(ports)).run(Report())
        with database.reading() as connection:
            found = Reconciler(ports, database, layout, leader=None).rows.on_host(connection, "web-1")
        assert [row.port for row in found] == [lease.port]


def leave_settings_behind(pooled: str) -> None:
    """Let both sessions of the pooler have what another of its clients set and never took back."""
    for _ in range(4):
        with psycopg.connect(pooled, autocommit=True, prepare_threshold=None) as other:
            other.execute("SET search_path TO pg_temp")
            other.execute("SET DateStyle TO 'German'")


def test_every_command_with_a_database_does_its_work_through_a_pooler(pooled: str, fleet: Fleet) -> None:
    variables = {"ALLOCATOR_DATABASE_URL": pooled}

    def run(*arguments: str) -> str:
        code, out, err = finish(fleet.spawn(*arguments, variables=variables))
        assert (code, "Traceback" in err) == (0, False), (arguments, out, err)
        return out

    run("db", "upgrade")
    with closing(Database.open(pooled)) as database, socket.create_server(("127.0.0.1", fleet.pool.first + 3)):
        leave_settings_behind(pooled)
        run("db", "upgrade")
        run("db", "check")
        table = Table(database, fleet.pool.name)
        with psycopg.connect(pooled, prepare_threshold=None) as other:
            other.execute("SET LOCAL search_path TO public")
            other.execute(
                "INSERT INTO plugin_runners (pool, organization_id, plugin_id, instance, port, runtime_state) "
                "VALUES (%s, 'org-1', 'email', 0, %s, 'ready')",
                (fleet.pool.name, fleet.pool.first + 3),
            )
        leave_settings_behind(pooled)
        assert "adopted" in run("adopt", "--ttl", "10m")
        run("claim", "email", "--org", "org-2", "--record", "--ttl", "10m")
        fleet.ports.claim("email", org="org-3", ttl=600.0)
        assert "1 rows written" in run("reconcile", "--once")
        _, out, err = finish(fleet.spawn("doctor", "--format", "json", variables=variables))
        assert "Traceback" not in err
        checks = {one["check"] for one in json.loads(out)["findings"]}
        assert not {"database", "drift"} & checks, out
        assert served_drift(fleet, variables) == (True, 0)
        client = client_of(fleet.ports.store)
        for key in client.scan_iter(match=f"alloc:{{{fleet.pool.name}}}*", count=1_000):
            client.delete(key)
        fleet.ports.apply_pool(fleet.pool)
        run("pool", "restore", "--from-database", "--pool", fleet.pool.name)
        assert fleet.ports.claim("email", org="org-2").port == port_of(table, pooled, "org-2")


def port_of(table: Table, pooled: str, org: str) -> int:
    with psycopg.connect(pooled, prepare_threshold=None) as other:
        other.execute("SET LOCAL search_path TO public")
        found = other.execute("SELECT port FROM plugin_runners WHERE organization_id = %s", (org,)).fetchone()
    assert found is not None
    return int(found[0])


def served_drift(fleet: Fleet, variables: dict[str, str]) -> tuple[bool, int]:
    """Return what a server says of the differences: whether it compared, and their number."""
    server = fleet.spawn("serve", "--listen", "127.0.0.1:0", variables=variables)
    for line in server.stderr:
        if found := re.search(r" on (http[^\s;]+)", line):
            answer = httpx.get(f"{found[1]}/v1/drift", timeout=60).json()
            break
    server.terminate()
    finish(server)
    return answer["compared"], answer["count"]
