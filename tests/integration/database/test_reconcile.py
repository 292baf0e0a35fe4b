"""One pass makes SQL say what Redis says, whatever stood there before, and touches nothing else."""

from __future__ import annotations

import socket
from dataclasses import replace
from typing import TYPE_CHECKING

import psycopg
import pytest
from runners_table import Table, drift
from servers import client_of

from allocator import LeaseState, PortAllocator
from allocator.database.connection import Database
from allocator.database.fenced import DeposedError
from allocator.database.leader import Leader
from allocator.database.reconciler import Reconciler, Report
from allocator.database.upgrade import open_layout, upgrade
from allocator.model.tables import TableNames
from allocator.operations.listing import reap

if TYPE_CHECKING:
    from allocator import PoolSpec

ORG = "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"


def redis_of(ports: PortAllocator):
    return client_of(ports.store)


def forget_lease(ports: PortAllocator, lease) -> None:
    """Let a lease expire: its key is gone, nobody released it."""
    redis_of(ports).delete(f"alloc:{{{lease.pool}}}:lease:{lease.host}:{lease.port}")


def test_a_pass_writes_a_row_for_every_lease(reconciler: Reconciler, ports: PortAllocator, table: Table) -> None:
    leases = [ports.claim("email", org=f"org-{n}") for n in range(20)]
    report = reconciler.run(Report())
    assert (report.leases, report.written, report.counts) == (20, 20, {"missing-row": 20})
    assert table.addresses() == {str(one.worker): ("web-1", one.port, "starting") for one in leases}
    again = reconciler.run(Report())
    assert (again.written, again.counts) == (0, {})
    assert drift(reconciler) == {}


def test_all_that_a_holder_reports_is_in_the_row(reconciler: Reconciler, ports: PortAllocator, table: Table) -> None:
    lease = ports.claim("email", org="org-1")
    fields = {"state": LeaseState.DEGRADED, "pid": 4242, "restarts": 3, "last_error": "exit code 1"}
    ports.renew(replace(lease, **fields), rewrite=True)
    reconciler.run(Report())
    row = table.rows()["org-1/email#0"]
    assert (row["runtime_state"], row["pid"], row["restart_count"], row["last_error"]) == (
        "degraded", 4242, 3, "exit code 1",
    )  # fmt: skip
    assert row["fence"] == lease.fence
    assert row["stopped_at"] is None
    assert row["lease_expires_at"] is not None


@pytest.mark.parametrize("state", ["starting", "ready", "degraded", "draining"])
def test_a_state_that_changed_is_followed(
    reconciler: Reconciler, ports: PortAllocator, table: Table, state: str
) -> None:
    lease = ports.claim("email", org="org-1")
    reconciler.run(Report())
    ports.renew(replace(lease, state=LeaseState(state)), rewrite=True)
    if state != "starting":
        assert drift(reconciler) == {"org-1/email#0": "wrong-state"}
    reconciler.run(Report())
    assert table.rows()["org-1/email#0"]["runtime_state"] == state


def test_a_released_lease_leaves_a_stopped_row(reconciler: Reconciler, ports: PortAllocator, table: Table) -> None:
    lease = ports.claim("email", org="org-1")
    reconciler.run(Report())
    ports.release(lease)
    assert drift(reconciler) == {"org-1/email#0": "stale-row"}
    reconciler.run(Report())
    row = table.rows()["org-1/email#0"]
    assert (row["runtime_state"], row["last_error"], row["port"]) == ("stopped", None, lease.port)
    assert row["stopped_at"] is not None
    ports.claim("email", org="org-1")
    reconciler.run(Report())
    row = table.rows()["org-1/email#0"]
    assert (row["runtime_state"], row["stopped_at"]) == ("starting", None)


def test_an_expired_lease_leaves_a_stopped_row_that_reports_it(
    reconciler: Reconciler, ports: PortAllocator, table: Table
) -> None:
    lease = ports.claim("email", org="org-1")
    reconciler.run(Report())
    forget_lease(ports, lease)
    reconciler.run(Report())
    row = table.rows()["org-1/email#0"]
    assert row["runtime_state"] == "stopped"
    assert "expired" in row["last_error"]
    assert "nobody released it" in row["last_error"]


def test_a_worker_that_failed_and_was_not_well_again_ends_in_error(
    reconciler: Reconciler, ports: PortAllocator, table: Table
) -> None:
    for org, state in (("org-1", LeaseState.STARTING), ("org-2", LeaseState.READY)):
        lease = ports.claim("email", org=org)
        (lease,) = ports.renew(replace(lease, state=state, last_error="exit code 1: boom"), rewrite=True)
        reconciler.run(Report())
        ports.release(lease)
    reconciler.run(Report())
    rows = table.rows()
    assert (rows["org-1/email#0"]["runtime_state"], rows["org-1/email#0"]["last_error"]) == (
        "error", "exit code 1: boom",
    )  # fmt: skip
    assert rows["org-2/email#0"]["runtime_state"] == "stopped"


def test_a_declined_lease_leaves_a_stopped_row(reconciler: Reconciler, ports: PortAllocator, table: Table) -> None:
    lease = ports.claim("email", org="org-1")
    reconciler.run(Report())
    ports.decline(lease)
    reconciler.run(Report())
    row = table.rows()["org-1/email#0"]
    assert (row["runtime_state"], "declined" in row["last_error"]) == ("stopped", True)


def test_workers_that_changed_addresses_are_both_right(
    reconciler: Reconciler, ports: PortAllocator, table: Table
) -> None:
    one, two = ports.claim("email", org="org-1"), ports.claim("email", org="org-2")
    reconciler.run(Report())
    ports.release(one)
    ports.release(two)
    for org, port in (("org-1", two.port), ("org-2", one.port)):
        forget_address(ports, org)
        ports.claim("email", org=org, port=port)
    assert set(drift(reconciler).values()) == {"wrong-port"}
    reconciler.run(Report())
    addresses = {worker: port for worker, (_, port, _) in table.addresses().items()}
    assert addresses == {"org-1/email#0": two.port, "org-2/email#0": one.port}


def forget_address(ports: PortAllocator, org: str) -> None:
    redis_of(ports).delete(f"alloc:{{{ports.session.pool}}}:worker:{org}/email#0")


def test_a_worker_that_moved_to_another_host_is_followed(
    reconciler: Reconciler, ports: PortAllocator, table: Table, redis_url: str, pool: PoolSpec
) -> None:
    lease = ports.claim("email", org="org-1")
    reconciler.run(Report())
    ports.release(lease)
    with PortAllocator.from_url(redis_url, pool=pool.name, host="a-host") as there:
        moved = there.claim("email", org="org-1")
        reconciler.run(Report())
        assert table.addresses() == {"org-1/email#0": ("a-host", moved.port, "starting")}
        assert drift(reconciler) == {}


def test_a_newer_fence_in_the_row_is_never_overwritten(
    reconciler: Reconciler, ports: PortAllocator, table: Table
) -> None:
    lease = ports.claim("email", org="org-1")
    table.add("org-1/email", host="web-9", port=7, runtime_state="ready", fence=lease.fence + 10)
    before = table.rows()
    assert drift(reconciler) == {"org-1/email#0": "wrong-port"}
    reconciler.run(Report())
    assert table.rows() == before


def test_a_live_row_of_another_worker_at_a_leased_address_gives_way(
    reconciler: Reconciler, ports: PortAllocator, table: Table
) -> None:
    lease = ports.claim("email", org="org-1")
    table.add("org-9/email", host="web-1", port=lease.port, runtime_state="ready", fence=5)
    assert drift(reconciler) == {"org-1/email#0": "missing-row", "org-9/email#0": "duplicate-live"}
    reconciler.run(Report())
    assert table.addresses() == {
        "org-1/email#0": ("web-1", lease.port, "starting"),
        "org-9/email#0": ("web-1", lease.port, "stopped"),
    }
    assert "org-1/email#0" in table.rows()["org-9/email#0"]["last_error"]


def test_a_row_that_nobody_can_explain_is_reported_and_left(
    reconciler: Reconciler, ports: PortAllocator, table: Table
) -> None:
    table.add("org-1/email", host="web-7", port=5556, runtime_state="ready", fence=5)
    table.add("org-2/email", port=5557, runtime_state="ready")
    table.add("a b/c d", host="web-7", port=5558, runtime_state="ready", fence=5)
    table.add("org-3/email", host="web-7", port=5559, runtime_state="stopped", fence=5)
    before = table.rows()
    expected = dict.fromkeys(("org-1/email#0", "org-2/email#0", "a b/c d#0"), "unknown-row")
    assert drift(reconciler) == expected
    report = reconciler.run(Report())
    assert report.counts == {"unknown-row": 3}
    assert table.rows() == before


def test_rows_of_other_pools_are_not_touched(reconciler: Reconciler, ports: PortAllocator, table: Table) -> None:
    lease = ports.claim("email", org="org-1")
    for other in ("org-1/email", "org-2/email"):
        table.add(
            other, pool="other", host="web-1", port=lease.port + len(table.rows()), runtime_state="ready", fence=1
        )
    before = {row["organization_id"]: row for row in table.rows().values() if row["pool"] == "other"}
    reconciler.run(Report())
    ports.release(lease)
    reconciler.run(Report())
    assert {row["organization_id"]: row for row in table.run("SELECT * FROM plugin_runners WHERE pool = 'other'")} == (
        before | {row["organization_id"]: row for row in table.run("SELECT * FROM plugin_runners WHERE pool = 'other'")}
    )
    assert len(table.run("SELECT * FROM plugin_runners WHERE pool = 'other' AND runtime_state = 'ready'")) == 2


def test_a_listener_without_a_lease_is_drift(reconciler: Reconciler, pool: PoolSpec) -> None:
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", pool.first + 9))
        stranger.listen()
        assert drift(reconciler) == {f"port {pool.first + 9}": "unknown-listener"}
    assert drift(reconciler) == {}


def test_emptied_redis_stops_no_row_and_new_leases_take_their_addresses(
    reconciler: Reconciler, ports: PortAllocator, table: Table
) -> None:
    old = [ports.claim("email", org=f"org-{n}") for n in range(3)]
    reconciler.run(Report())
    client = redis_of(ports)
    for key in client.scan_iter(match=f"alloc:{{{ports.session.pool}}}*", count=1_000):
        client.delete(key)
    report = reconciler.run(Report())
    assert report.counts == {"unknown-row": 3}
    assert {state for _, _, state in table.addresses().values()} == {"starting"}
    (renewed,) = ports.renew(old[0])
    newcomer = ports.claim("email", org="org-9", port=old[1].port)
    reconciler.run(Report())
    rows = table.rows()
    assert rows["org-0/email#0"]["fence"] == renewed.fence > old[0].fence
    assert rows["org-1/email#0"]["runtime_state"] == "stopped"
    assert rows["org-9/email#0"]["port"] == newcomer.port
    assert rows["org-2/email#0"]["runtime_state"] == "starting"


def test_a_database_restored_from_an_old_copy_is_made_right(
    reconciler: Reconciler, ports: PortAllocator, table: Table
) -> None:
    first = ports.claim("email", org="org-1")
    reconciler.run(Report())
    copy = table.rows()
    ports.release(first)
    forget_address(ports, "org-1")
    second = ports.claim("email", org="org-1", port=first.port + 3)
    stripe = ports.claim("stripe", org="org-2", port=first.port)
    reconciler.run(Report())
    table.run("DELETE FROM plugin_runners")
    for worker, row in copy.items():
        table.add(worker, **{name: row[name] for name in ("host", "port", "runtime_state", "fence")})
    reconciler.run(Report())
    assert table.addresses() == {
        "org-1/email#0": ("web-1", second.port, "starting"),
        "org-2/stripe#0": ("web-1", stripe.port, "starting"),
    }


def test_a_deposed_leader_writes_nothing(reconciler: Reconciler, ports: PortAllocator, table: Table) -> None:
    """Two that both believe to lead: Redis lost the leadership under the first, which was paused."""
    ports.claim("email", org="org-1")
    reconciler.run(Report())
    client, pool = redis_of(ports), ports.session.pool
    client.delete(f"alloc:{{{pool}}}:leader", f"alloc:{{{pool}}}:tokens:!leader")
    second = Reconciler(ports, reconciler.database, reconciler.rows.layout, leader=Leader(ports))
    lease = ports.claim("stripe", org="org-2")
    second.run(Report())
    ports.renew(replace(lease, state=LeaseState.READY), rewrite=True)
    before = table.rows()
    with pytest.raises(DeposedError):
        reconciler.run(Report())
    assert table.rows() == before
    second.run(Report())
    assert table.rows()["org-2/stripe#0"]["runtime_state"] == "ready"


def test_a_leadership_is_held_by_one_and_given_up(ports: PortAllocator) -> None:
    one, two = Leader(ports), Leader(ports)
    assert one.take().fence is not None
    held = two.take()
    assert (held.fence, held.holder) == (None, one.holder)
    assert one.take().fence == one.fence
    with pytest.raises(DeposedError):
        two.renew()
    before = one.fence
    one.give_up()
    one.give_up()
    assert (two.take().fence or 0) > (before or 0)


def test_a_row_that_the_database_refuses_keeps_no_other_from_being_written(
    ports: PortAllocator, postgres_url: str, pool: PoolSpec
) -> None:
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(
            "CREATE TABLE organizations (id UUID PRIMARY KEY);"
            f"INSERT INTO organizations VALUES ('{ORG}');"
            "CREATE TABLE plugin_runners (id UUID PRIMARY KEY DEFAULT gen_random_uuid(), organization_id UUID NOT NULL"
            " REFERENCES organizations (id), plugin_id TEXT, port INT, runtime_state TEXT,"
            " created_at TIMESTAMP NOT NULL DEFAULT now())"
        )
    database = Database.open(postgres_url)
    upgrade(database, TableNames())
    reconciler = Reconciler(ports, database, open_layout(database, TableNames()), leader=Leader(ports))
    unknown = ORG.replace("a0", "b1")
    leases = {org: ports.claim("email", org=org) for org in (ORG, unknown, "org-1")}
    report = reconciler.run(Report())
    assert report.written == 1
    assert "foreign key" in report.refused[f"{unknown}/email#0"]
    found = Table(database, pool.name).rows()
    assert [(str(row["organization_id"]), row["port"]) for row in found.values()] == [(ORG, leases[ORG].port)]
    assert drift(reconciler) == {f"{unknown}/email#0": "missing-row", "org-1/email#0": "missing-row"}
    ports.release(leases[ORG])
    reconciler.run(Report())
    assert next(iter(Table(database, pool.name).rows().values()))["runtime_state"] == "stopped"
    database.close()


def test_a_fleet_wide_pool_is_followed_too(
    database: Database, redis_url: str, pool: PoolSpec, ports: PortAllocator, table: Table
) -> None:
    spec = replace(pool, name=f"{pool.name}-fleet", scope="fleet")
    with PortAllocator.from_url(redis_url, pool=spec.name, host="web-2") as one:
        one.apply_pool(spec)
        with PortAllocator.from_url(redis_url, pool=spec.name, host="web-1") as two:
            leases = [one.claim("email", org="org-1"), two.claim("email", org="org-2"), one.claim("email", org="org-3")]
            layout = open_layout(database, TableNames())
            reconciler = Reconciler(one, database, layout, leader=Leader(one))
            reconciler.run(Report())
            assert {(row["host"], row["port"]) for row in table.rows().values()} == {
                (lease.host, lease.port) for lease in leases
            }
            assert drift(reconciler) == {}
            one.release(leases[0])
            one.run(reap(spec.name))
            reconciler.run(Report())
            assert table.addresses()["org-1/email#0"][2] == "stopped"


def test_the_time_of_a_lease_is_written_again_once_it_has_passed(
    reconciler: Reconciler, ports: PortAllocator, table: Table
) -> None:
    lease = ports.claim("email", org="org-1")
    reconciler.run(Report())
    past = "2001-01-01 00:00:00"
    table.run("UPDATE plugin_runners SET lease_expires_at = CAST(:past AS " +
              ("TEXT" if table.database.is_sqlite else "TIMESTAMPTZ") + ")", past=past)  # fmt: skip
    assert drift(reconciler) == {}
    unchanging = Reconciler(
        ports, reconciler.database, reconciler.rows.layout, leader=reconciler.leader, refreshes=False
    )
    unchanging.run(Report())
    assert "2001" in str(table.rows()["org-1/email#0"]["lease_expires_at"])
    ports.renew(lease)
    reconciler.run(Report())
    assert "2001" not in str(table.rows()["org-1/email#0"]["lease_expires_at"])


def test_many_more_than_fit_into_one_batch(reconciler: Reconciler, ports: PortAllocator, table: Table) -> None:
    """Rows of hosts that are gone, among which a few leases stand."""
    lease = ports.claim("email", org="org-1")
    with reconciler.database.writing() as connection:
        columns = reconciler.rows.layout.runners
        connection.execute(
            columns.insert(),
            [
                {"pool": table.pool, "organization_id": f"o-{n:05}", "plugin_id": "email", "instance": 0,
                 "host": f"host-{n % 97:03}", "port": 1 + n // 97, "runtime_state": "ready", "fence": 3,
                 "restart_count": 0, "created_at": 0.0, "updated_at": 0.0}
                for n in range(5_000)
            ],
        )  # fmt: skip
    report = reconciler.run(Report())
    assert report.counts == {"unknown-row": 5_000, "missing-row": 1}
    assert table.addresses()["org-1/email#0"] == ("web-1", lease.port, "starting")


def test_what_is_shown_comes_in_pages_and_each_difference_once(
    reconciler: Reconciler, ports: PortAllocator, table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a page is: a row away from its lease, ports that were swapped, rows of the manual days, a lost row."""
    leases = [ports.claim("email", org=f"org-{n}") for n in range(12)]
    reconciler.run(Report())
    table.run("DELETE FROM plugin_runners WHERE organization_id = 'org-0'")
    table.run("UPDATE plugin_runners SET runtime_state = 'draining' WHERE organization_id = 'org-1'")
    table.run("UPDATE plugin_runners SET port = :port WHERE organization_id = 'org-11'", port=leases[0].port)
    table.run("UPDATE plugin_runners SET host = 'web-0' WHERE organization_id = 'org-5'")
    for number in range(7):
        table.add(f"org-m{number}/crm", host="web-2", port=6_000 + number, runtime_state="ready")
    monkeypatch.setattr("allocator.database.rows.READ_AT_ONCE", 2)
    monkeypatch.setattr("allocator.database.reconciler.WALKED_AT_ONCE", 3)
    monkeypatch.setattr("allocator.database.adoption.BATCH", 2)
    found = drift(reconciler)
    assert {worker for worker, kind in found.items() if kind == "missing-row"} == {"org-0/email#0"}
    assert {worker for worker, kind in found.items() if kind == "wrong-port"} == {"org-5/email#0", "org-11/email#0"}
    assert {worker for worker, kind in found.items() if kind == "wrong-state"} == {"org-1/email#0"}
    assert {worker for worker, kind in found.items() if kind == "unknown-row"} == {f"org-m{n}/crm#0" for n in range(7)}
    assert len(found) == 11
    assert list(found)[-7:] == [f"org-m{number}/crm#0" for number in range(7)]
    for _ in range(2):  # the row of a newer lease stands in the way of the first pass
        reconciler.run(Report())
    assert set(drift(reconciler).values()) == {"unknown-row"}
