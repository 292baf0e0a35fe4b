"""The way back: after Redis lost everything, ports wait for the workers whom the database has there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from servers import client_of

from allocator import HeldError, PortAllocator
from allocator.database.reconciler import Report
from allocator.database.restore import restore_from_rows

if TYPE_CHECKING:
    from runners_table import Table

    from allocator import PoolSpec
    from allocator.database.reconciler import Reconciler


def lose_everything(ports: PortAllocator, pool: PoolSpec) -> None:
    client = client_of(ports.store)
    for key in client.scan_iter(match=f"alloc:{{{pool.name}}}*", count=1_000):
        client.delete(key)
    ports.apply_pool(pool)


def test_nobody_is_moved_off_the_port_that_others_know(
    reconciler: Reconciler, ports: PortAllocator, table: Table, pool: PoolSpec, redis_url: str
) -> None:
    before = {}
    for number in (2, 0, 1):
        before[f"org-{number}"] = ports.claim("email", org=f"org-{number}", port=pool.first + 2 * number)
    stopped = ports.claim("email", org="org-9")
    ports.release(stopped)
    reconciler.run(Report())
    lose_everything(ports, pool)

    done = restore_from_rows(ports, reconciler.database, reconciler.rows.layout)
    assert (done.restored, done.known, done.unfit) == (3, 0, [])
    assert ports.leases() == []
    reconciler.run(Report())
    assert {worker for worker, (_, _, state) in table.addresses().items() if state == "starting"} == {
        f"{org}/email#0" for org in before
    }
    with PortAllocator.from_url(redis_url, pool=pool.name, host="web-1") as others:
        taken = [others.claim("crm", org=f"other-{number}").port for number in range(8)]
        assert not {lease.port for lease in before.values()} & set(taken)
        with pytest.raises(HeldError):
            others.claim("crm", org="other-9", port=before["org-1"].port)
        for org, lease in before.items():
            again = others.claim("email", org=org)
            assert (again.port, again.fence > lease.fence) == (lease.port, True)
        reconciler.run(Report())
        rows = table.rows()
        assert {org: rows[f"{org}/email#0"]["port"] for org in before} == {
            org: lease.port for org, lease in before.items()
        }


def test_restoring_twice_and_over_what_redis_knows_changes_nothing(
    reconciler: Reconciler, ports: PortAllocator, table: Table, pool: PoolSpec
) -> None:
    ports.claim("email", org="org-1")
    other = ports.claim("email", org="org-2")
    reconciler.run(Report())
    lose_everything(ports, pool)
    (kept,) = ports.renew(other)
    first = restore_from_rows(ports, reconciler.database, reconciler.rows.layout)
    second = restore_from_rows(ports, reconciler.database, reconciler.rows.layout)
    assert (first.restored, first.known) == (1, 1)
    assert (second.restored, second.known) == (0, 2)
    assert [(one.port, one.fence) for one in ports.leases()] == [(kept.port, kept.fence)]


def test_rows_that_cannot_be_claims_are_named(
    reconciler: Reconciler, ports: PortAllocator, table: Table, pool: PoolSpec
) -> None:
    table.add("a b/email", host="web-1", port=pool.first, runtime_state="ready", fence=5)
    table.add("org-1/email", host="we b", port=pool.first, runtime_state="ready", fence=5)
    table.add("org-2/email", host="web-1", port=80, runtime_state="ready", fence=5)
    done = restore_from_rows(ports, reconciler.database, reconciler.rows.layout)
    assert done.restored == 0
    assert sorted(done.unfit) == ["a b/email#0", "org-1/email#0", "org-2/email#0"]
