"""The reconciler under lost events, kills, pauses and losses of data, on real servers and as real processes.

The database itself watches for the promise that no newer fence is overwritten: a trigger enters every update that
lowers one. What others wrote (rows of another pool, rows by hand, a column of theirs) is compared after every step.
"""

from __future__ import annotations

import contextlib
import os
import signal
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from reconcilers import Reconcilers
from runners_table import WATCH_POSTGRES, Table, drift
from scripted_redis import MINUTE, ScriptedRedis, claim, make_context

from allocator import DatabaseRecorder, PortAllocator
from allocator.database import connection as connections
from allocator.database.connection import Database
from allocator.database.fenced import DeposedError
from allocator.database.leader import Leader
from allocator.database.reconciler import Reconciler, Report
from allocator.database.upgrade import open_layout, upgrade
from allocator.model.errors import AllocatorError, DatabaseUnavailableError, HeldError
from allocator.model.names import WorkerId
from allocator.model.pools import PoolSpec
from allocator.model.states import TRANSITIONS, LeaseState
from allocator.model.tables import LIVE_ROW_STATES, TableNames
from allocator.operations.attempt import ClaimRequest
from allocator.operations.end import decline, release
from allocator.operations.find import find
from allocator.operations.listing import leases
from allocator.operations.pools import apply_pool
from allocator.operations.renew import renew

if TYPE_CHECKING:
    from collections.abc import Iterator

    from allocator.model.leases import Lease

POOL = PoolSpec(name="p", first=7001, last=7004, ttl_ms=30 * MINUTE, grace_ms=MINUTE, cooldown_ms=0)
HOSTS = ("web-1", "web-2")
WORKERS = tuple(WorkerId(f"org-{number}", plugin) for number in (1, 2, 3) for plugin in ("email", "crm"))
STATEMENTS = st.integers(0, 25)
LIVE_NAMES = sorted(LIVE_ROW_STATES)

WATCH_SQLITE = """
CREATE TRIGGER watch_fences BEFORE UPDATE ON plugin_runners
WHEN OLD.fence IS NOT NULL AND (NEW.fence IS NULL OR NEW.fence < OLD.fence)
BEGIN INSERT INTO lowered VALUES (OLD.organization_id, OLD.fence, NEW.fence); END
"""


class Arena:
    """One Redis, one database, and a process that forks reconcilers; emptied for each example."""

    def __init__(self, redis_url: str, client: Any, database_url: str) -> None:
        self.store = ScriptedRedis(client)
        self.database = Database.open(database_url)
        upgrade(self.database, TableNames())
        self.table = Table(self.database, POOL.name)
        self.table.run("ALTER TABLE plugin_runners ADD COLUMN note TEXT")
        self.table.run("CREATE TABLE lowered (worker TEXT, old BIGINT, new BIGINT)")
        self.table.run(WATCH_SQLITE if self.database.is_sqlite else WATCH_POSTGRES)
        self.ports = PortAllocator.from_url(redis_url, pool=POOL.name, host="web-1")
        self.recorder = DatabaseRecorder(self.database)
        self.layout = open_layout(self.database, TableNames())
        self.forks = Reconcilers(redis_url, database_url, POOL.name)

    def empty(self) -> None:
        self.store.client.flushall()
        self.ports.session.context.rules.clear()
        for table in ("plugin_runners", "plugin_runners_leaders", "lowered"):
            self.table.run(f"DELETE FROM {table}")

    def close(self) -> None:
        with self.forks:
            pass
        self.ports.close()
        self.database.close()


class Following(RuleBasedStateMachine):
    """Six workers, four ports on each of two hosts, and whoever reconciles."""

    arena: Arena

    def __init__(self) -> None:
        super().__init__()
        arena = self.arena
        arena.empty()
        self.store, self.table = arena.store, arena.table
        self.store.drive(apply_pool(POOL))
        self.contexts = {host: make_context(host) for host in HOSTS}
        self.held: dict[WorkerId, Lease] = {}
        self.paused: list[int] = []
        self.copy: list[dict[str, Any]] = []
        self.pids = count(100)
        self.table.add("org-1/email", pool="other", host="web-1", port=7001, runtime_state="ready", fence=1, note="a")
        self.table.add("org-8/email", port=7001, runtime_state="ready", note="by hand")
        self.table.add("org-9/email", host="web-9", port=7002, runtime_state="ready", fence=3, note="who knows")
        self.others = self.rows_of_others()

    def rows_of_others(self) -> list[dict[str, Any]]:
        return self.table.run("SELECT * FROM plugin_runners WHERE note IS NOT NULL ORDER BY note")

    # -- leases --

    @rule(worker=st.sampled_from(WORKERS), host=st.sampled_from(HOSTS), recorded=st.booleans())
    def claims(self, worker: WorkerId, host: str, recorded: bool) -> None:
        context = self.contexts[host]
        request = ClaimRequest(pool=POOL.name, worker=worker, holder={"pid": next(self.pids)})
        try:
            lease = self.store.drive(claim(context, request))
        except AllocatorError:
            return
        self.held[worker] = lease
        if recorded:
            try:
                standing = self.arena.recorder.record(lease)
            except (DatabaseUnavailableError, HeldError) as error:
                standing = f"a paused writer has the file, or Redis forgot a newer lease: {error}"
            if standing:
                self.store.drive(decline(context, [lease]))
                del self.held[worker]

    @rule(data=st.data())
    def renews(self, data: st.DataObject) -> None:
        """A holder renews with another state; one that was lost meanwhile learns of it."""
        if not self.held:
            return
        worker = data.draw(st.sampled_from(sorted(self.held)))
        lease = self.held[worker]
        states = sorted(TRANSITIONS[lease.state] & set(map(LeaseState, LIVE_NAMES)) | {lease.state})
        changed = replace(lease, state=data.draw(st.sampled_from(states)), restarts=lease.restarts + 1)
        (outcome,) = self.store.drive(renew(self.contexts[lease.host], [changed], rewrite=True))
        if outcome.lost:
            del self.held[worker]
        else:
            self.held[worker] = outcome.lease

    @rule(data=st.data(), end=st.sampled_from([release, decline]))
    def ends(self, data: st.DataObject, end: Any) -> None:
        if not self.held:
            return
        lease = self.held.pop(data.draw(st.sampled_from(sorted(self.held))))
        with contextlib.suppress(AllocatorError):  # it may be somebody else's by now
            self.store.drive(end(self.contexts[lease.host], [lease]))

    @rule(minutes=st.sampled_from([7, 40]))
    def time_passes(self, minutes: int) -> None:
        self.store.advance(minutes * MINUTE)

    @rule()
    def redis_is_emptied(self) -> None:
        self.store.client.flushall()
        self.arena.ports.session.context.rules.clear()
        self.store.drive(apply_pool(POOL))

    # -- the database --

    @rule()
    def a_copy_is_made(self) -> None:
        self.copy = self.table.run("SELECT * FROM plugin_runners WHERE note IS NULL")

    @precondition(lambda self: not self.paused)
    @rule()
    def the_copy_is_restored(self) -> None:
        self.table.run("DELETE FROM plugin_runners WHERE note IS NULL")
        self.table.run("DELETE FROM plugin_runners_leaders")
        for row in self.copy:
            marks = ", ".join(f":{name}" for name in row)
            self.table.run(f"INSERT INTO plugin_runners ({', '.join(row)}) VALUES ({marks})", **row)

    # -- reconcilers --

    def leader_is_gone(self) -> None:
        """The time of whoever leads has passed."""
        self.store.client.delete("alloc:{p}:leader", "alloc:{p}:tokens:!leader")

    @rule(statement=STATEMENTS)
    def a_pass_is_killed(self, statement: int) -> None:
        self.leader_is_gone()
        answer = self.arena.forks.run(statement=statement, with_signal=signal.SIGKILL)
        assert answer["end"] == "killed" or answer["status"] in {0, 69, 74}, answer

    @precondition(lambda self: len(self.paused) < 2)
    @rule(statement=STATEMENTS)
    def a_pass_is_paused_beyond_its_lease(self, statement: int) -> None:
        self.leader_is_gone()
        answer = self.arena.forks.run(statement=statement, with_signal=signal.SIGSTOP)
        if answer["end"] == "stopped":
            self.paused.append(answer["pid"])
        else:
            assert answer["status"] in {0, 69, 74}, answer
        self.leader_is_gone()

    @precondition(lambda self: self.paused)
    @rule()
    def a_paused_pass_goes_on(self) -> None:
        answer = self.arena.forks.go_on(self.paused.pop(0))
        assert answer["end"] == "exited", answer
        assert answer["status"] in {0, 69, 73, 74}, answer

    def reconciler(self) -> Reconciler:
        leader = Leader(self.arena.ports)
        with self.arena.database.reading() as connection:
            reconciler = Reconciler(self.arena.ports, self.arena.database, self.arena.layout, leader=leader)
            leader.known_fence = reconciler.rows.leader_fence(connection)
        self.leader_is_gone()
        return reconciler

    @rule(data=st.data())
    def events_come_as_they_like(self, data: st.DataObject) -> None:
        """Some are lost, some come twice, in any order, and some name who had no event at all."""
        reconciler = self.reconciler()
        try:
            reconciler.settle(data.draw(st.lists(st.sampled_from(WORKERS), max_size=8)), Report())
        except (DatabaseUnavailableError, DeposedError):
            assert self.paused

    @rule()
    def a_quiet_pass_makes_all_equal(self) -> None:
        while self.paused:
            self.a_paused_pass_goes_on()
        self.reconciler().run(Report())
        rows = self.table.rows_of_pool()
        for lease in self.store.drive(leases(POOL.name)):
            row = rows[str(lease.worker)]
            assert (row["host"], row["port"], row["runtime_state"], row["fence"], row["pid"], row["restart_count"]) == (
                lease.host, lease.port, str(lease.state), lease.fence, lease.pid, lease.restarts,
            )  # fmt: skip
        reported = drift(self.reconciler())
        assert set(reported.values()) <= {"unknown-row"}, reported
        for worker, row in rows.items():
            if row["note"] is None and row["runtime_state"] in LIVE_ROW_STATES:
                (known,) = self.store.drive(find(POOL, [WorkerId.parse(worker)]))
                assert not known.explains_end_of(row["fence"]), row

    def teardown(self) -> None:
        self.a_quiet_pass_makes_all_equal()

    # -- promises --

    @invariant()
    def no_newer_fence_was_overwritten(self) -> None:
        assert self.table.run("SELECT * FROM lowered") == []

    @invariant()
    def no_row_of_others_was_touched(self) -> None:
        assert self.rows_of_others() == self.others


@pytest.fixture
def arena(request: pytest.FixtureRequest, real_server: Any, tmp_path: Any) -> Iterator[Arena]:
    url = f"sqlite:///{tmp_path}/rows.db" if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    real_server.client.flushall()
    before = connections.LOCK_TIMEOUT_S
    if request.param == "sqlite":  # a paused writer is waited for in vain; PostgreSQL ends its transaction
        connections.LOCK_TIMEOUT_S = 0.3
    made = Arena(f"unix://{real_server.socket}", real_server.client, url)
    yield made
    made.close()
    connections.LOCK_TIMEOUT_S = before


@pytest.mark.parametrize("arena", ["sqlite", "postgresql"], indirect=True)
def test_rows_follow_leases_through_every_fault(arena: Arena, profile: settings) -> None:
    class InArena(Following):
        pass

    InArena.arena = arena
    bounded = settings(profile, max_examples=max(3, profile.max_examples // 2), stateful_step_count=25)
    run_state_machine_as_test(InArena, settings=bounded)


E1, E2, E3, E4 = (WorkerId(f"org-{number}", "email") for number in (1, 2, 3, 4))
MOST_STATEMENTS = 60
PROFILE = os.environ.get("ALLOCATOR_TEST_PROFILE", "default")


class Arrangement:
    """Something of everything that a pass does: a row to make, to end, to move, to make room for, to refresh."""

    def __init__(self, arena: Arena) -> None:
        arena.empty()
        self.arena, self.table, self.context = arena, arena.table, make_context("web-1")
        self.drive = arena.store.drive
        self.drive(apply_pool(replace(POOL, last=7006)))
        ended, crowded = self.claims(E2, 7002), self.claims(E4, 7003)
        self.stays = self.claims(WorkerId("org-5", "crm"), 7004)
        self.passes()
        self.drive(release(self.context, [ended, crowded]))
        self.room = self.claims(E3, 7003)
        self.first = self.claims(E1, 7001)
        past = "2001-01-01 00:00:00"
        kind = "TEXT" if arena.database.is_sqlite else "TIMESTAMPTZ"
        self.table.run(f"UPDATE plugin_runners SET lease_expires_at = CAST('{past}' AS {kind}) WHERE port = 7004")

    def claims(self, worker: WorkerId, port: int) -> Lease:
        return self.drive(claim(self.context, ClaimRequest(pool=POOL.name, worker=worker, port=port)))

    def passes(self) -> dict[str, str]:
        """Make one pass of a new leader; return the workers whose rows were refused, a locked one among them."""
        self.leader_is_gone()
        leader = Leader(self.arena.ports)
        reconciler = Reconciler(self.arena.ports, self.arena.database, self.arena.layout, leader=leader)
        with self.arena.database.reading() as connection:
            leader.known_fence = reconciler.rows.leader_fence(connection)
        report = Report()
        reconciler.run(report)
        self.leader_is_gone()
        return report.refused

    def leader_is_gone(self) -> None:
        self.arena.store.client.delete("alloc:{p}:leader", "alloc:{p}:tokens:!leader")

    def assert_equal(self) -> None:
        rows = self.table.rows()
        live = {str(lease.worker): (lease.port, lease.fence) for lease in self.drive(leases(POOL.name))}
        assert {
            worker: (row["port"], row["fence"])
            for worker, row in rows.items()
            if row["runtime_state"] in LIVE_ROW_STATES
        } == live
        assert self.table.run("SELECT * FROM lowered") == []


def every_statement(arranged: Any, arena: Arena, with_signal: int) -> Iterator[tuple[Arrangement, dict[str, Any]]]:
    """Yield a fresh arranged for each statement of a pass that got a signal before it."""
    for statement in range(0, MOST_STATEMENTS, 4 if PROFILE == "quick" else 1):
        made = arranged(arena)
        answer = arena.forks.run(statement=statement, with_signal=with_signal)
        if answer == answer | {"end": "exited", "status": 69}:
            continue  # a busy machine: its transaction was idle for too long
        if answer["end"] == "exited":
            assert answer["status"] == 0
            assert statement > 10, "the pass had fewer statements than it must have"
            return
        yield made, answer
    raise AssertionError("the pass does not end")


@pytest.mark.parametrize("arena", ["sqlite", "postgresql"], indirect=True)
def test_a_pass_that_is_killed_between_any_two_statements_leaves_nothing_half_done(arena: Arena) -> None:
    for arranged, _ in every_statement(Arrangement, arena, signal.SIGKILL):
        rows = {worker: row["runtime_state"] for worker, row in arranged.table.rows().items()}
        assert ("org-3/email#0" in rows) == (rows["org-4/email#0"] == "stopped"), rows
        arranged.passes()
        arranged.assert_equal()


@pytest.mark.parametrize("arena", ["sqlite", "postgresql"], indirect=True)
@pytest.mark.parametrize("another_leads", [True, False])
def test_a_pass_that_is_paused_between_any_two_statements_overwrites_nothing_newer(
    arena: Arena, another_leads: bool
) -> None:
    """Its leases end, newer ones are recorded at other ports, another leads or not; then it goes on."""
    for arranged, answer in every_statement(Arrangement, arena, signal.SIGSTOP):
        arranged.drive(release(arranged.context, [arranged.first]))
        newer = [arranged.claims(E1, 7005), arranged.claims(E2, 7006)]
        recorded = []
        for lease in newer:
            with contextlib.suppress(DatabaseUnavailableError):
                if arena.recorder.record(lease) is None:
                    recorded.append(lease)
        if another_leads:
            with contextlib.suppress(DatabaseUnavailableError):
                refused = arranged.passes()  # a row that the paused one has locked is written at the next pass
                recorded = [lease for lease in newer if str(lease.worker) not in refused]
        done = arena.forks.go_on(answer["pid"])
        assert done["end"] == "exited", done
        rows = arranged.table.rows()
        for lease in recorded:
            row = rows[str(lease.worker)]
            assert (row["port"], row["fence"], row["runtime_state"]) == (lease.port, lease.fence, "starting"), done
        arranged.passes()
        arranged.assert_equal()


@pytest.mark.parametrize("arena", ["sqlite", "postgresql"], indirect=True)
def test_a_leader_that_was_paused_takes_back_no_state_that_its_successor_wrote(arena: Arena) -> None:
    """The fence of the lease is the same in both; only that of the leader tells who saw it last."""
    for arranged, answer in every_statement(Arrangement, arena, signal.SIGSTOP):
        (ready,) = [
            one.lease
            for one in arranged.drive(
                renew(arranged.context, [replace(arranged.first, state=LeaseState.READY)], rewrite=True)
            )
        ]
        try:
            if str(ready.worker) in arranged.passes():
                ready = None  # PostgreSQL: the paused one has locked the row
        except DatabaseUnavailableError:
            ready = None  # SQLite: the paused one has the file
        arena.forks.go_on(answer["pid"])
        if ready:
            assert arranged.table.rows()["org-1/email#0"]["runtime_state"] == "ready"
        arranged.passes()
        arranged.assert_equal()
