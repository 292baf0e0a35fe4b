"""Write-through: when a claim returns its row is there, and a place that another live row has is left to it."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from servers import client_of
from supervised import eventually

from allocator import (
    AsyncPortAllocator,
    ConfigurationError,
    DatabaseRecorder,
    DatabaseUnavailableError,
    HeldError,
    LeaseLostError,
    PortAllocator,
    PortRefusedError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from runners_table import Table

    from allocator import Lease, PoolSpec
    from allocator.model.names import WorkerId
    from allocator.operations.steps import Standing


@pytest.fixture
def recorder(table: Table, database_url: str) -> Iterator[DatabaseRecorder]:
    with DatabaseRecorder.open(database_url) as opened:
        yield opened


@pytest.fixture
def ports(redis_url: str, pool: PoolSpec) -> Iterator[PortAllocator]:
    with PortAllocator.from_url(redis_url, pool=pool.name, host="web-1") as allocator:
        yield allocator


@pytest.fixture(autouse=True)
def _recorded(ports: PortAllocator, recorder: DatabaseRecorder) -> None:
    ports.recorder = recorder


def test_the_row_is_there_when_the_claim_returns(ports: PortAllocator, table: Table) -> None:
    lease = ports.claim("email", org="org-1", record=True)
    row = table.rows()["org-1/email#0"]
    assert (row["host"], row["port"], row["fence"]) == ("web-1", lease.port, lease.fence)
    assert row["runtime_state"] == "starting"
    with ports.hold("stripe", org="org-1", record=True) as held:
        assert table.rows()["org-1/stripe#0"]["port"] == held.port


def test_async_claims_are_recorded_too(
    redis_url: str, pool: PoolSpec, recorder: DatabaseRecorder, table: Table
) -> None:
    table.add("org-9/email", host="web-1", port=pool.first, runtime_state="ready")

    async def scenario() -> int:
        async with AsyncPortAllocator.from_url(redis_url, pool=pool.name, host="web-1", recorder=recorder) as ports:
            return (await ports.claim("email", org="org-1", record=True)).port

    port = asyncio.run(scenario())
    assert port != pool.first
    assert table.rows()["org-1/email#0"]["port"] == port


@pytest.mark.parametrize("fence", [None, 1, 5 * 10**15])
def test_an_address_that_another_live_row_has_is_declined_and_another_port_claimed(
    ports: PortAllocator, table: Table, pool: PoolSpec, fence: int | None
) -> None:
    table.add("org-9/email", host="web-1", port=pool.first, runtime_state="ready", fence=fence)
    before = table.rows()["org-9/email#0"]
    lease = ports.claim("email", org="org-1", record=True)
    assert lease.port == pool.first + 1
    assert table.rows()["org-9/email#0"] == before
    assert table.rows()["org-1/email#0"]["port"] == lease.port
    assert [one.port for one in ports.leases()] == [lease.port]
    with pytest.raises(HeldError, match="was given back"):
        ports.claim("email", org="org-2", port=pool.first)


def test_an_explicit_port_whose_address_another_row_has_is_an_error(
    ports: PortAllocator, table: Table, pool: PoolSpec
) -> None:
    table.add("org-9/email", host="web-1", port=pool.first, runtime_state="ready")
    with pytest.raises(PortRefusedError, match=r"live row of org-9/email#0 there \(written by hand\)"):
        ports.claim("email", org="org-1", port=pool.first, record=True)
    assert ports.leases() == []
    assert "org-1/email#0" not in table.rows()


def test_a_row_whose_lease_is_known_to_have_ended_is_not_in_the_way(ports: PortAllocator, table: Table) -> None:
    """Without a reconciler: rows of released and expired leases stay live until a claim meets them."""
    for end in ("release", "expire"):
        old = ports.claim("email", org="org-old", record=True)
        if end == "release":
            ports.release(old)
        else:
            client_of(ports.store).delete(f"alloc:{{{old.pool}}}:lease:web-1:{old.port}")
            client_of(ports.store).zadd(f"alloc:{{{old.pool}}}:ports:web-1", {str(old.port): 0})
        new = ports.claim("email", org="org-new", port=old.port, record=True)
        assert table.addresses()["org-old/email#0"] == ("web-1", old.port, "stopped")
        assert table.addresses()["org-new/email#0"] == ("web-1", old.port, "starting")
        ports.release(new)


def test_a_row_of_a_live_lease_is_never_given_up(
    ports: PortAllocator, table: Table, recorder: DatabaseRecorder
) -> None:
    lease = ports.claim("email", org="org-1", record=True)
    rival = ports.claim("stripe", org="org-2")
    table.run("UPDATE plugin_runners SET port = :port", port=rival.port)
    assert recorder.record(rival) is not None
    assert list(table.rows()) == ["org-1/email#0"]
    assert lease.fence == table.rows()["org-1/email#0"]["fence"]


def test_an_older_fence_changes_nothing(ports: PortAllocator, table: Table, recorder: DatabaseRecorder) -> None:
    old = ports.claim("email", org="org-1", record=True)
    ports.release(old)
    ports.claim("email", org="org-1", port=old.port + 5, record=True)
    before = table.rows()
    with pytest.raises(HeldError, match=r"row of org-1/email#0 is of a newer lease \(fence \d+ on web-1:\d+\)"):
        recorder.record(old)
    assert table.rows() == before


def test_a_row_of_a_newer_lease_costs_a_fresh_claim_its_lease_and_not_its_address(
    ports: PortAllocator, table: Table, pool: PoolSpec
) -> None:
    """Redis lost its leases and counts from the beginning; the row knows a later one."""
    table.add("org-1/email", host="web-2", port=pool.first + 7, runtime_state="ready", fence=5 * 10**15)
    before = table.rows()
    with pytest.raises(HeldError, match="pool restore --from-database"):
        ports.claim("email", org="org-1", record=True)
    assert table.rows() == before
    assert ports.leases() == []


@pytest.mark.parametrize("event", ["INSERT", "UPDATE"])
def test_a_table_that_drops_the_row_is_an_error_and_the_lease_is_given_back(
    ports: PortAllocator, table: Table, event: str
) -> None:
    if event == "UPDATE":
        ports.release(ports.claim("email", org="org-1", record=True))
    before = table.rows()
    if table.database.is_sqlite:
        table.run(f"CREATE TRIGGER drops BEFORE {event} ON plugin_runners BEGIN SELECT RAISE(IGNORE); END")
    else:
        table.run("CREATE FUNCTION drops() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'")
        table.run(f"CREATE TRIGGER drops BEFORE {event} ON plugin_runners FOR EACH ROW EXECUTE FUNCTION drops()")
    with pytest.raises(
        ConfigurationError, match=r"refuses the row of org-1/email#0 .it drops the row without an error"
    ):
        ports.claim("email", org="org-1", record=True)
    assert table.rows() == before
    assert ports.leases() == []


def test_claiming_again_keeps_the_lease_and_its_row(ports: PortAllocator, table: Table) -> None:
    lease = ports.claim("email", org="org-1", record=True)
    before = table.rows()
    again = ports.claim("email", org="org-1", token=lease.token, record=True)
    assert again.fence == lease.fence
    assert table.rows() == before


def test_a_database_that_is_away_costs_no_lease_that_was_held_before(
    ports: PortAllocator, table: Table, recorder: DatabaseRecorder
) -> None:
    held = ports.claim("email", org="org-1")
    ports.recorder = DatabaseRecorder.open("postgresql://nobody@127.0.0.1:1/nowhere", timeout=1)
    with pytest.raises(DatabaseUnavailableError):
        ports.claim("email", org="org-1", token=held.token, record=True)
    with pytest.raises(DatabaseUnavailableError):
        ports.claim("stripe", org="org-2", record=True)
    assert [one.worker for one in ports.leases()] == [held.worker]


class Slow:
    """A recorder whose database answers so often only when the lease has run out."""

    def __init__(
        self, recorder: DatabaseRecorder, ports: PortAllocator, then: Callable[[Lease], object], times: int
    ) -> None:
        self.recorder, self.ports, self.then, self.times = recorder, ports, then, times

    def check(self, pool: str, worker: WorkerId) -> None:
        self.recorder.check(pool, worker)

    def record(self, lease: Lease, *, over: Standing | None = None) -> Standing | None:
        standing = self.recorder.record(lease, over=over)
        if self.times:
            self.times -= 1
            eventually(lambda: not self.ports.leases(), "the lease did not run out")
            self.then(lease)
        return standing


def test_a_claim_returns_a_living_lease_whose_row_has_its_fence_however_long_that_took(
    ports: PortAllocator, recorder: DatabaseRecorder, table: Table
) -> None:
    granted: list[Lease] = []
    ports.recorder = Slow(recorder, ports, granted.append, times=1)
    lease = ports.claim("email", org="org-1", ttl=3.0, record=True)
    assert [(one.port, one.fence) for one in ports.leases()] == [(lease.port, lease.fence)]
    assert lease.deadline > time.monotonic()
    row = table.rows()["org-1/email#0"]
    assert (row["port"], row["fence"]) == (lease.port, lease.fence)
    assert len({lease.fence, *(one.fence for one in granted)}) == 2


def test_a_database_that_is_slower_than_the_lease_each_time_is_an_error_and_leaves_no_lease(
    ports: PortAllocator, recorder: DatabaseRecorder
) -> None:
    ports.recorder = Slow(recorder, ports, lambda _: None, times=100)
    with pytest.raises(DatabaseUnavailableError, match=r"took longer each time .*; look what holds the database up"):
        ports.claim("email", org="org-1", ttl=1.0, record=True)
    assert ports.leases() == []


def test_a_claim_whose_port_another_got_before_its_row_was_written_reports_it(
    redis_url: str, pool: PoolSpec, ports: PortAllocator, recorder: DatabaseRecorder
) -> None:
    ports.apply_pool(replace(pool, grace_ms=0))

    async def scenario() -> None:
        slow = Slow(recorder, ports, lambda lease: ports.claim("stripe", org="org-2", port=lease.port), 1)
        async with AsyncPortAllocator.from_url(redis_url, pool=pool.name, host="web-1", recorder=slow) as others:
            await others.claim("email", org="org-1", ttl=1.0, record=True)

    with pytest.raises(LeaseLostError, match="org-2/stripe#0 has web-1"):
        asyncio.run(scenario())


def test_recording_without_a_recorder_states_what_to_give(ports: PortAllocator) -> None:
    ports.recorder = None
    with pytest.raises(ConfigurationError, match="DatabaseRecorder"):
        ports.claim("email", org="org-1", record=True)
    assert ports.leases() == []


def test_many_claims_at_once_leave_a_row_each(
    redis_url: str, pool: PoolSpec, recorder: DatabaseRecorder, table: Table
) -> None:
    def claim(number: int) -> int:
        with PortAllocator.from_url(redis_url, pool=pool.name, host="web-1", recorder=recorder) as mine:
            return mine.claim("email", org=f"org-{number}", record=True).port

    with ThreadPoolExecutor(8) as threads:
        taken = list(threads.map(claim, range(32)))
    assert len(set(taken)) == 32
    assert sorted(row["port"] for row in table.rows().values()) == sorted(taken)
