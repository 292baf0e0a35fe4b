"""`reconcile`, `pool restore` at a terminal: what they print, what they exit with, and what they refuse."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from servers import client_of

if TYPE_CHECKING:
    from conftest import Allocator

    from allocator import PoolSpec, PortAllocator


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("reconcile",), "--dry-run"),
        (("reconcile", "--once", "--watch"), "--dry-run"),
        (("reconcile", "--watch", "--every", "soon"), "soon"),
        (("reconcile", "--watch", "--every", "1ms"), "100ms"),
        (("reconcile", "--once", "--metrics-listen", "127.0.0.1:1"), "--watch"),
        (("reconcile", "--watch", "--metrics-listen", "127.0.0.1"), "address"),
        (("reconcile", "--watch", "--metrics-listen", "127.0.0.1:70000"), "not a port"),
        (("pool", "restore"), "--from-database"),
        (("pool", "restore", "--from-database", "--for", "0s"), "0 s"),
        (("pool", "restore", "--from-database", "--for", "x"), "x"),
        (("db", "sql", "--dialect", "mysql"), "mysql"),
        (("db",), "upgrade"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_a_wrong_argument_is_exit_2(allocator: Allocator, arguments: tuple[str, ...], message: str) -> None:
    done = allocator(*arguments)
    assert (done.code, done.out) == (2, "")
    assert message in done.err


def test_drift_is_shown_fixed_and_gone(allocator: Allocator) -> None:
    port = allocator("claim", "email", "--org", "org-1", "--ttl", "10m").out.strip()
    shown = allocator("reconcile", "--dry-run")
    assert shown.code == 1
    assert shown.out.splitlines()[0].split()[:4] == ["KIND", "HOST", "PORT", "WORKER"]
    assert shown.out.splitlines()[1].split()[:4] == ["missing-row", "web-1", port, "org-1/email#0"]
    once = allocator("reconcile", "--once")
    assert (once.code, once.out.endswith("1 leases, 1 missing-row; 1 rows written\n")) == (0, True)
    after = allocator("reconcile", "--dry-run")
    assert (after.code, after.out) == (0, "no drift\n")
    assert (allocator("reconcile", "--dry-run", "--format", "json").out) == "[]\n"
    assert json.loads(allocator("reconcile", "--once", "--format", "json").out) == {
        "leases": 1, "written": 0, "differences": {}, "refused": {},
    }  # fmt: skip


def test_the_way_back(allocator: Allocator, ports: PortAllocator, pool: PoolSpec) -> None:
    port = allocator("claim", "email", "--org", "org-1", "--port", str(pool.first + 7), "--record").out.strip()
    client = client_of(ports.store)
    for key in client.scan_iter(match=f"alloc:{{{pool.name}}}*", count=1_000):
        client.delete(key)
    missing = allocator("pool", "restore", "--from-database")
    assert (missing.code, missing.out) == (78, "")
    assert "pool apply" in missing.err
    ports.apply_pool(pool)
    done = allocator("pool", "restore", "--from-database", "--for", "10m")
    assert (done.code, "1 ports wait for their workers, 0 were known" in done.err) == (0, True)
    assert allocator("claim", "crm", "--org", "org-2", "--port", port).code == 73
    assert allocator("claim", "email", "--org", "org-1").out.strip() == port


def test_a_cordoned_host_adopts_nothing_and_states_why(
    allocator: Allocator, ports: PortAllocator, pool: PoolSpec
) -> None:
    import socket
    import sqlite3

    assert allocator("claim", "email", "--org", "org-1", "--record").code == 0
    assert allocator("host", "cordon", "web-1").code == 0
    with socket.socket() as worker:
        worker.bind(("127.0.0.1", pool.first + 5))
        worker.listen()
        with sqlite3.connect(allocator.state / "allocator" / "plugin_runners.sqlite3") as connection:
            connection.execute(
                "INSERT INTO plugin_runners (pool, organization_id, plugin_id, port, runtime_state) "
                "VALUES (?, 'org-9', 'email', ?, 'ready')",
                (pool.name, pool.first + 5),
            )
        connection.close()
        once, adopted = allocator("reconcile", "--once"), allocator("adopt")
    assert (once.code, adopted.code) == (0, 1)
    assert "org-9/email#0 was not adopted: host web-1 is cordoned" in once.err
    assert "is cordoned" in adopted.out
    assert len(ports.leases()) == 1
