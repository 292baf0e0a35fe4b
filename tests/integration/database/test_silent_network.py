"""A network that swallows every packet to Redis or to the database: whatever waits for them ends, and all comes right.

Nobody refuses a connection there and none is reset, so only limits of our own end a wait.
"""

from __future__ import annotations

import time
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING

import pytest
from far_host import FarHost
from runners_table import Table
from servers import Server
from watchers import NAMES, Watching, wait_until

from allocator import DatabaseRecorder, DatabaseUnavailableError, PortAllocator, StoreUnavailableError
from allocator.database.connection import Database
from allocator.database.reconciler import Reconciler, Report
from allocator.database.upgrade import check, open_layout, upgrade

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from allocator import PoolSpec

LIMIT_S = 40.0
"""Longer than any limit of ours, also on a busy machine; the kernel alone waits for minutes."""


@pytest.fixture
def far() -> Iterator[FarHost]:
    with FarHost() as host:
        yield host


def ends(tried: Callable[[], object], error: type[Exception], text: str) -> None:
    began = time.monotonic()
    with pytest.raises(error, match=text) as raised:
        tried()
    assert time.monotonic() - began < LIMIT_S
    assert "\n" not in str(raised.value)


def test_a_silent_database_holds_nobody_up_and_all_is_right_afterwards(
    far: FarHost, postgres_url: str, ports: PortAllocator, redis_url: str
) -> None:
    start, _, name = postgres_url.rpartition("/")
    url = f"{start.rpartition('@')[0]}@{far.address}:{far.leads_to(int(start.rpartition(':')[2]))}/{name}"
    with (
        closing(Database.open(url, timeout_s=3)) as database,
        closing(Database.open(postgres_url)) as near,
        DatabaseRecorder.open(url, timeout=3) as recorder,
    ):
        upgrade(database, NAMES)
        look = Reconciler(ports, database, open_layout(database, NAMES), leader=None)
        kept = PortAllocator(ports.store, ports.session, recorder=recorder)
        kept.claim("email", org="org-1", record=True)
        with Watching(redis_url, ports.session.pool, database) as watching:
            wait_until(lambda: watching.seen.leading, "it does not lead")
            far.silence()
            ends(lambda: kept.claim("email", org="org-2", record=True), DatabaseUnavailableError, "is silent")
            ends(lambda: look.run(Report()), DatabaseUnavailableError, "is silent")
            ends(lambda: check(database, NAMES), DatabaseUnavailableError, "is silent")
            wait_until(lambda: watching.printed("is silent"), "it reports nothing")
            wait_until(lambda: watching.seen.outages and not watching.seen.leading, "its metrics are a leader's")
            assert [lease.org for lease in ports.leases()] == ["org-1"]
            lease = ports.claim("email", org="org-3")
            far.answer()
            address = (lease.host, lease.port, "starting")
            table = Table(near, ports.session.pool)
            wait_until(lambda: table.addresses().get("org-3/email#0") == address, "the row is not written")
            assert watching.error is None


def test_a_silent_redis_holds_nobody_up_and_all_is_right_afterwards(
    far: FarHost, pool: PoolSpec, tmp_path: Path
) -> None:
    with (
        Server() as server,
        PortAllocator.from_url(server.ready().url, pool=pool.name, host="web-1") as ports,
        closing(Database.open(f"sqlite:///{tmp_path}/rows.db")) as database,
        ExitStack() as stack,
    ):
        ports.apply_pool(pool)
        url = f"redis://{far.address}:{far.leads_to(server.port)}"
        others = stack.enter_context(PortAllocator.from_url(url, pool=pool.name, host="web-1", timeout=2))
        upgrade(database, NAMES)
        table = Table(database, pool.name)
        watching = stack.enter_context(Watching(url, pool.name, database))
        held = others.start_heartbeats(others.claim("email", org="org-1", ttl=300.0))
        wait_until(lambda: "org-1/email#0" in table.rows(), "it does not follow")
        far.silence()
        ends(lambda: others.claim("email", org="org-2"), StoreUnavailableError, ".")
        ends(others.leases, StoreUnavailableError, ".")
        wait_until(lambda: watching.printed("waiting for it"), "it reports nothing")
        wait_until(lambda: not watching.seen.leading, "its metrics are a leader's")
        lease = ports.claim("stripe", org="org-3")
        far.answer()
        assert others.claim("email", org="org-4")
        address = (lease.host, lease.port, "starting")
        wait_until(lambda: table.addresses().get("org-3/stripe#0") == address, "the row is not written")
        others.end_held(held)
        assert watching.error is None
