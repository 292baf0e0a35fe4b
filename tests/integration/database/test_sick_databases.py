"""Databases in trouble: every wait ends with a line that says what it is, and all is right once the trouble is over."""

from __future__ import annotations

import os
import signal
import sqlite3
import threading
import time
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import psycopg
import pytest
from postgres import Postgres
from runners_table import Table
from servers import client_of
from watchers import NAMES, Watching, wait_until

from allocator import DatabaseRecorder, DatabaseUnavailableError, PortAllocator
from allocator.database.connection import Database
from allocator.database.leader import Leader
from allocator.database.reconciler import Reconciler, Report
from allocator.database.upgrade import check, open_layout, upgrade
from allocator.model.errors import ConfigurationError
from allocator.model.states import LeaseState

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pgbouncer import Reach

    from allocator import Lease, PoolSpec

TEXT = "naïve — 'quoted\\'"
LIMIT_S = 20.0
"""Longer than any limit of ours, also on a busy machine; without limits each of these waits for minutes or for ever."""


def recording(ports: PortAllocator, recorder: DatabaseRecorder) -> PortAllocator:
    return PortAllocator(ports.store, ports.session, recorder=recorder)


@pytest.fixture(params=["postgresql", "pooled", "sqlite"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database, of each kind in turn."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/workers.sqlite3"
    return str(request.getfixturevalue("pooled" if request.param == "pooled" else "postgres_url"))


@pytest.fixture
def own_postgres() -> Iterator[Postgres]:
    with Postgres() as server:
        yield server


@contextmanager
def stopped(server: Postgres) -> Iterator[None]:
    """Stop a server and all its backends, as a machine without memory or processor time is."""
    pids = [server.process.pid, *server._children()]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def test_a_server_that_is_stopped_holds_nobody_up(own_postgres: Postgres, ports: PortAllocator, reach: Reach) -> None:
    url = reach(own_postgres.new_database())
    with closing(Database.open(url)) as database, DatabaseRecorder.open(url, timeout=2) as recorder:
        upgrade(database, NAMES)
        kept = recording(ports, recorder)
        first = kept.claim("email", org="org-1", record=True)
        layout = open_layout(database, NAMES)
        with stopped(own_postgres):
            began = time.monotonic()
            with pytest.raises(DatabaseUnavailableError, match="is silent"):
                kept.claim("email", org="org-2", record=True)
            with pytest.raises(DatabaseUnavailableError, match="is silent"):
                Reconciler(ports, database, layout, leader=None).run(Report())
            assert time.monotonic() - began < LIMIT_S
        assert [lease.port for lease in ports.leases()] == [first.port]
        assert kept.claim("email", org="org-2", record=True)


def test_a_kept_connection_to_a_stopped_backend_is_replaced(
    postgres_url: str, ports: PortAllocator, reach: Reach
) -> None:
    url = reach(postgres_url)
    with closing(Database.open(url)) as database, DatabaseRecorder.open(url) as recorder:
        upgrade(database, NAMES)
        kept = recording(ports, recorder)
        kept.claim("email", org="org-1", record=True)
        with psycopg.connect(postgres_url, autocommit=True) as other:
            query = (
                "SELECT pid FROM pg_stat_activity WHERE application_name = 'portlease' AND datname = current_database()"
            )
            pids = [row[0] for row in other.execute(query).fetchall()]
        assert pids
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            began = time.monotonic()
            kept.claim("email", org="org-2", record=True)
            assert time.monotonic() - began < LIMIT_S
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)


def test_a_watcher_that_meets_a_stopped_server_reports_it_lets_others_lead_and_goes_on(
    own_postgres: Postgres, ports: PortAllocator, redis_url: str, reach: Reach
) -> None:
    url = reach(own_postgres.new_database())
    with closing(Database.open(url, timeout_s=2)) as database:
        upgrade(database, NAMES)
        with Watching(redis_url, ports.session.pool, database) as watching:
            seen = watching.seen
            wait_until(lambda: seen.leading, "it does not lead")
            with stopped(own_postgres):
                wait_until(lambda: watching.printed("is silent"), "it reports nothing")
                wait_until(lambda: seen.outages and not seen.leading, "the metrics are those of a leader")
                lease = ports.claim("email", org="org-1")
            wait_until(lambda: seen.leading, "it does not lead again")
            table = Table(database, ports.session.pool)
            address = (lease.host, lease.port, "starting")
            wait_until(lambda: table.addresses().get("org-1/email#0") == address, "the row is not written")


@contextmanager
def table_lock(url: str) -> Iterator[None]:
    with psycopg.connect(url) as other:
        other.execute("LOCK TABLE plugin_runners IN ACCESS EXCLUSIVE MODE")
        yield


def test_nobody_waits_for_a_lock_on_the_table_longer_than_promised(
    postgres_url: str, ports: PortAllocator, reach: Reach, monkeypatch: pytest.MonkeyPatch
) -> None:
    if reach.is_pooled:
        monkeypatch.setattr("allocator.database.connection.LOCK_TIMEOUT_S", 1.0)
    url = reach(postgres_url)
    with closing(Database.open(url)) as database, DatabaseRecorder.open(url) as recorder:
        upgrade(database, NAMES)
        layout = open_layout(database, NAMES)
        tries = {
            "check": lambda: check(database, NAMES),
            "look": lambda: Reconciler(ports, database, layout, leader=None).run(Report()),
            "claim": lambda: recording(ports, recorder).claim("email", org="org-1", record=True),
        }
        with table_lock(postgres_url):
            for name, tried in tries.items():
                began = time.monotonic()
                with pytest.raises(DatabaseUnavailableError, match=r"is busy .*lock timeout"):
                    tried()
                assert time.monotonic() - began < LIMIT_S, name
        assert ports.leases() == []


@pytest.mark.parametrize("is_written", [False, True], ids=["row of the older fence", "row of the newer fence"])
def test_a_row_that_waited_while_its_lease_was_asserted_again_has_the_current_fence(
    postgres_url: str, ports: PortAllocator, reach: Reach, monkeypatch: pytest.MonkeyPatch, is_written: bool
) -> None:
    """Redis lost the lease, and the agent asserted it again, while `claim --record` waited for a lock."""
    monkeypatch.setattr("allocator.database.connection.LOCK_TIMEOUT_S", 60.0)
    monkeypatch.setattr("allocator.database.recorder.STATEMENT_S", 60.0)
    url = reach(postgres_url)
    with closing(Database.open(url)) as database, DatabaseRecorder.open(url, timeout=60) as recorder:
        upgrade(database, NAMES)
        table = Table(database, ports.session.pool)
        kept = recording(ports, recorder)
        first = kept.claim("email", org="org-1", record=True)
        again: list[Lease] = []
        claiming = threading.Thread(
            target=lambda: again.append(kept.claim("email", org="org-1", token=first.token, record=True))
        )
        with psycopg.connect(url, prepare_threshold=None) as other:
            other.execute("LOCK TABLE plugin_runners IN EXCLUSIVE MODE")
            claiming.start()
            waiting = "SELECT 1 FROM pg_locks WHERE relation = 'plugin_runners'::regclass AND NOT granted"
            wait_until(lambda: other.execute(waiting).fetchone(), "the claim does not wait for the lock")
            forget(ports, first)
            (asserted,) = ports.renew(first)
            assert asserted.fence > first.fence
            if is_written:
                other.execute("UPDATE plugin_runners SET fence = %s", (asserted.fence,))
        claiming.join(60)
        (row,) = table.rows().values()
        assert (again[0].fence, row["fence"], row["port"]) == (asserted.fence, asserted.fence, first.port)


def forget(ports: PortAllocator, lease: Lease) -> None:
    """Let Redis lose a lease."""
    client = client_of(ports.store)
    base = f"alloc:{{{lease.pool}}}"
    client.delete(f"{base}:lease:web-1:{lease.port}", f"{base}:tokens:web-1")


def test_used_up_connections_are_named_as_such(postgres_url: str, reach: Reach) -> None:
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        if not connection.execute("SELECT 1 FROM pg_roles WHERE rolname = 'crowded'").fetchone():
            connection.execute("CREATE ROLE crowded LOGIN CONNECTION LIMIT 1")
    url = postgres_url.replace("postgres@", "crowded@")
    with (
        psycopg.connect(url),
        closing(Database.open(reach(url))) as database,
        pytest.raises(DatabaseUnavailableError, match=r"has no connection left .*; end some, or raise") as raised,
    ):
        check(database, NAMES)
    assert "start it" not in str(raised.value)


def test_an_idle_transaction_that_was_ended_is_named_as_such(
    postgres_url: str, reach: Reach, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("allocator.database.connection.IDLE_TRANSACTION_S", 0.1)
    url = reach(postgres_url)
    with closing(Database.open(url)) as database, psycopg.connect(postgres_url, autocommit=True) as other:

        def stand_still() -> None:
            with database.writing() as connection:
                pid = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
                query = "SELECT 1 FROM pg_stat_activity WHERE pid = %s"
                wait_until(lambda: other.execute(query, (pid,)).fetchone() is None, "the server does not end it")
                connection.exec_driver_sql("SELECT 1")

        with pytest.raises(DatabaseUnavailableError, match="stood still"):
            stand_still()


def test_a_setting_that_made_a_session_read_only_is_noticed_when_it_is_lifted(
    postgres_url: str, ports: PortAllocator, reach: Reach
) -> None:
    name = postgres_url.rpartition("/")[2]
    with closing(Database.open(postgres_url)) as database, psycopg.connect(postgres_url, autocommit=True) as other:
        upgrade(database, NAMES)
        other.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
        with DatabaseRecorder.open(reach(postgres_url)) as recorder:
            kept = recording(ports, recorder)
            with pytest.raises(DatabaseUnavailableError, match="takes no changes now"):
                kept.claim("email", org="org-1", record=True)
            other.execute("SET default_transaction_read_only = off")
            other.execute(f'ALTER DATABASE "{name}" RESET default_transaction_read_only')
            reach.new_sessions()
            assert kept.claim("email", org="org-1", record=True)


@pytest.mark.parametrize(
    "setting",
    ["DateStyle = 'German'", "TimeZone = 'Asia/Kathmandu'", "standard_conforming_strings = off",
     "bytea_output = 'escape'", "IntervalStyle = 'sql_standard'", "client_encoding = 'LATIN1'",
     "default_transaction_isolation = 'serializable'", "lock_timeout = 1"],
)  # fmt: skip
def test_what_a_role_sets_for_its_sessions_changes_nothing(
    postgres_url: str, ports: PortAllocator, reach: Reach, setting: str
) -> None:
    name = postgres_url.rpartition("/")[2]
    with closing(Database.open(postgres_url)) as database:
        upgrade(database, NAMES)
        with psycopg.connect(postgres_url, autocommit=True) as other:
            other.execute(f'ALTER DATABASE "{name}" SET {setting}')
    with closing(Database.open(reach(postgres_url))) as database:
        layout = open_layout(database, NAMES)
        lease = ports.claim("email", org="org-1", ttl="5m")
        ports.renew(replace(lease, state=LeaseState.DEGRADED, last_error=TEXT), rewrite=True)
        Reconciler(ports, database, layout, leader=Leader(ports)).run(Report())
        (row,) = Table(database, ports.session.pool).run("SELECT last_error FROM plugin_runners")
        assert row["last_error"] == TEXT
        with database.reading() as connection:
            (read,) = Reconciler(ports, database, layout, leader=None).rows.on_host(connection, "web-1")
        assert read.expires_at == pytest.approx(lease.expires_at, abs=60)
        assert Reconciler(ports, database, layout, leader=None).run(Report()).counts == {}


def test_a_statement_limit_of_the_role_is_not_that_of_ours(postgres_url: str) -> None:
    name = postgres_url.rpartition("/")[2]
    with psycopg.connect(postgres_url, autocommit=True) as other:
        other.execute(f"ALTER DATABASE \"{name}\" SET statement_timeout = '2s'")
    with closing(Database.open(postgres_url)) as database, database.reading() as connection:
        connection.exec_driver_sql("SELECT pg_sleep(2.5)")


def test_a_file_that_is_removed_or_replaced_under_a_watcher_is_noticed(
    tmp_path: Path, ports: PortAllocator, redis_url: str
) -> None:
    file, url = tmp_path / "rows.db", f"sqlite:///{tmp_path}/rows.db"
    with closing(Database.open(url)) as database:
        upgrade(database, NAMES)
        with Watching(redis_url, ports.session.pool, database) as watching:
            wait_until(lambda: watching.printed("leading"), "it does not lead")
            for one in tmp_path.glob("rows.db*"):
                one.unlink()
            wait_until(lambda: watching.printed("was removed"), "it does not notice", 60)
            assert not file.exists()
            lease = ports.claim("email", org="org-1")
            with closing(Database.open(url)) as again:
                upgrade(again, NAMES)
            address = (lease.host, lease.port, "starting")

            def is_written() -> bool:
                with closing(sqlite3.connect(file)) as looking:
                    found = looking.execute("SELECT host, port, runtime_state FROM plugin_runners").fetchall()
                return found == [address]

            wait_until(is_written, "the row is not written into the new file", 60)


@pytest.mark.parametrize("fence", [2**63 - 2, 2**53 - 1, "a day ahead"], ids=str)
def test_a_leader_of_a_restored_database_leads_again_and_all_the_while_asks_seldom(
    database: Database, ports: PortAllocator, redis_url: str, fence: int | str
) -> None:
    table = Table(database, ports.session.pool)
    number = fence if isinstance(fence, int) else int((time.time() + 86_400) * 1_000_000)
    with Watching(redis_url, ports.session.pool, database) as watching:
        first = ports.claim("email", org="org-1")
        wait_until(lambda: "org-1/email#0" in table.rows(), "it does not follow")
        table.run("UPDATE plugin_runners_leaders SET fence = :fence", fence=number)
        second = ports.claim("email", org="org-2")
        address = (second.host, second.port, "starting")
        wait_until(lambda: table.addresses().get("org-2/email#0") == address, "it does not recover", 30)
        assert len(watching.lines) <= 6, watching.lines
        assert table.addresses()["org-1/email#0"] == (first.host, first.port, "starting")
        assert watching.error is None


REFUSALS = {
    "a code of its own": "RAISE EXCEPTION 'not today' USING ERRCODE = 'APP01'",
    "a missing table": "PERFORM 1 FROM no_such_table",
    "no right": "RAISE EXCEPTION 'row-level security' USING ERRCODE = '42501'",
    "a lock": "RAISE EXCEPTION 'locked' USING ERRCODE = '55P03'",
    "a division": "PERFORM 1 / 0",
    "another port": "NEW.port := NEW.port + 1000; RETURN NEW",
    "another state": "NEW.runtime_state := 'stopped'; RETURN NEW",
    "no row": "RETURN NULL",
    "endless": "PERFORM pg_sleep(100)",
}


def trigger(table: Table, body: str, plugin: str) -> None:
    table.run(
        "CREATE FUNCTION trouble() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        f"IF NEW.plugin_id = '{plugin}' THEN {body}; END IF; RETURN NEW; END $$"
    )
    table.run(
        "CREATE TRIGGER trouble BEFORE INSERT OR UPDATE ON plugin_runners FOR EACH ROW EXECUTE FUNCTION trouble()"
    )


@pytest.mark.parametrize("body", REFUSALS.values(), ids=REFUSALS)
def test_the_trouble_of_one_row_is_that_rows(
    postgres_url: str, ports: PortAllocator, reach: Reach, body: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("allocator.database.connection.STATEMENT_S", 1.0)
    url = reach(postgres_url)
    with closing(Database.open(url)) as database, DatabaseRecorder.open(url) as recorder:
        upgrade(database, NAMES)
        table = Table(database, ports.session.pool)
        reconciler = Reconciler(ports, database, open_layout(database, NAMES), leader=Leader(ports))
        trigger(table, body, "stripe")
        good = [ports.claim("email", org=f"org-{number}") for number in range(5)]
        bad = ports.claim("stripe", org="org-bad")
        for _ in range(2):
            report = reconciler.run(Report())
            assert list(report.refused) == ["org-bad/stripe#0"]
            live = {address for address in table.addresses().values() if address[2] != "stopped"}
            assert live == {(one.host, one.port, "starting") for one in good}
        ports.release(bad)
        with pytest.raises((ConfigurationError, DatabaseUnavailableError)) as raised:
            recording(ports, recorder).claim("stripe", org="org-other", record=True)
        assert "\n" not in str(raised.value)
        assert "org-other/stripe#0" not in table.rows()
        assert {lease.org for lease in ports.leases()} == {one.org for one in good}


def test_a_policy_that_hides_one_row_ends_no_watcher(postgres_url: str, ports: PortAllocator, reach: Reach) -> None:
    with closing(Database.open(postgres_url)) as owner:
        upgrade(owner, NAMES)
        table = Table(owner, ports.session.pool)
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            if not connection.execute("SELECT 1 FROM pg_roles WHERE rolname = 'tenant'").fetchone():
                connection.execute("CREATE ROLE tenant LOGIN")
            connection.execute("GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA public TO tenant")
            connection.execute("ALTER TABLE plugin_runners ENABLE ROW LEVEL SECURITY")
            connection.execute("CREATE POLICY own ON plugin_runners USING (organization_id <> 'org-theirs')")
        with closing(Database.open(reach(postgres_url.replace("postgres@", "tenant@")))) as database:
            reconciler = Reconciler(ports, database, open_layout(database, NAMES), leader=Leader(ports))
            lease = ports.claim("email", org="org-mine")
            ports.claim("email", org="org-theirs")
            report = reconciler.run(Report())
        assert list(report.refused) == ["org-theirs/email#0"]
        assert table.addresses() == {"org-mine/email#0": (lease.host, lease.port, "starting")}


def test_a_row_that_another_transaction_holds_keeps_no_other_from_being_written(
    postgres_url: str, ports: PortAllocator, reach: Reach
) -> None:
    with closing(Database.open(reach(postgres_url))) as database:
        upgrade(database, NAMES)
        table = Table(database, ports.session.pool)
        reconciler = Reconciler(ports, database, open_layout(database, NAMES), leader=Leader(ports))
        leases = [ports.claim("email", org=f"org-{number}") for number in range(5)]
        reconciler.run(Report())
        for lease in leases:
            ports.renew(replace(lease, state=LeaseState.READY), rewrite=True)
        with psycopg.connect(postgres_url) as other:
            other.execute("SELECT 1 FROM plugin_runners WHERE organization_id = 'org-3' FOR UPDATE")
            report = reconciler.run(Report())
            assert list(report.refused) == ["org-3/email#0"]
            states = {worker: address[2] for worker, address in table.addresses().items()}
            assert states.pop("org-3/email#0") == "starting"
            assert set(states.values()) == {"ready"}
        assert reconciler.run(Report()).refused == {}
        assert {address[2] for address in table.addresses().values()} == {"ready"}


@pytest.mark.parametrize("change", ["instance = 5", "plugin_id = 'stripe'", "organization_id = 'org-9'"])
def test_a_row_whose_key_was_changed_by_hand_makes_way_for_its_leases_own(
    reconciler: Reconciler, ports: PortAllocator, table: Table, change: str
) -> None:
    lease = ports.claim("email", org="org-1")
    reconciler.run(Report())
    table.run(f"UPDATE plugin_runners SET {change}")
    assert reconciler.run(Report()).refused == {}
    addresses = table.addresses()
    assert addresses.pop("org-1/email#0") == (lease.host, lease.port, "starting")
    assert [address[2] for address in addresses.values()] == ["stopped"]
    assert reconciler.run(Report()).counts == {}


def test_check_names_the_rights_that_a_role_lacks(postgres_url: str, pool: PoolSpec, reach: Reach) -> None:
    with closing(Database.open(postgres_url)) as database, psycopg.connect(postgres_url, autocommit=True) as connection:
        upgrade(database, NAMES)
        assert check(database, NAMES).findings == []
        if not connection.execute("SELECT 1 FROM pg_roles WHERE rolname = 'looker'").fetchone():
            connection.execute("CREATE ROLE looker LOGIN")
        connection.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO looker")
        looker = reach(postgres_url.replace("postgres@", "looker@"))
        with closing(Database.open(looker)) as looking:
            texts = [finding.text for finding in check(looking, NAMES).findings]
        assert len(texts) == 2
        assert "the role looker has no INSERT, UPDATE on plugin_runners" in texts[0]
        grants = [text.rpartition("; ")[2] for text in texts]
        for grant in grants:
            connection.execute(grant)
        with closing(Database.open(looker)) as looking:
            assert check(looking, NAMES).findings == []
