"""Anything in the columns of `plugin_runners`: passes, drift, adoption end in order, other rows stay as they are."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from fuzzing import accepted, any_bytes, any_text, examples
from hypothesis import example, given
from hypothesis import strategies as st
from runners_table import Table, drift

from allocator import PoolSpec, PortAllocator
from allocator.database.adoption import manual_rows, unexplained_rows
from allocator.database.connection import Database
from allocator.database.leader import Leader
from allocator.database.reconciler import Reconciler, Report
from allocator.database.restore import restore_from_rows
from allocator.database.upgrade import check, open_layout, upgrade
from allocator.model.errors import ExhaustedError
from allocator.model.tables import COLUMNS, ROW_STATES, TableNames

if TYPE_CHECKING:
    from collections.abc import Iterator

SPEC = PoolSpec(name="strange-rows", first=17_000, last=17_010, cooldown_ms=0)
NAMES = TableNames()

WILD = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(), any_text(max_size=40), any_bytes(),
    st.sampled_from([0, -1, 65_535, 65_536, 2**31, 1e300, "17000", "x", "9" * 5_000, "1970-01-01", "infinity", "NaN"]),
)  # fmt: skip
LIKELY: dict[str, st.SearchStrategy[Any]] = {
    "organization_id": st.sampled_from(["org-1", "org-2", "a b", ""]),
    "plugin_id": st.sampled_from(["email", "stripe", "a/b", ""]),
    "instance": st.integers(-1, 2),
    "host": st.sampled_from(["web-1", "web-2", None, ""]),
    "port": st.sampled_from([17_000, 17_001, 1, 70_000, None]),
    "runtime_state": st.sampled_from([*ROW_STATES, "", "unknown"]),
    "fence": st.sampled_from([None, 0, -1, 1, 2**62, 1_700_000_000_000_000]),
    "pid": st.sampled_from([None, 0, -1, 1, 2**31 - 1]),
    "restart_count": st.sampled_from([None, -1, 0, 5]),
    "last_error": st.sampled_from([None, "", "x" * 600, "a\nb"]),
}


@st.composite
def rows(draw: st.DrawFn) -> dict[str, Any]:
    """A row as another program may write it: what is likely, here and there anything."""
    found = {name: draw(form) for name, form in LIKELY.items()}
    return found | draw(st.dictionaries(st.sampled_from([*COLUMNS[1:]]), WILD, max_size=3))


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path_factory.mktemp('rows')}/rows.sqlite3"
    else:
        url = request.getfixturevalue("postgres").new_database()
    opened = Database.open(url)
    upgrade(opened, NAMES)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def ports(redis_url: str) -> Iterator[PortAllocator]:
    with PortAllocator.from_url(redis_url, pool=SPEC.name, host="web-1") as allocator:
        allocator.apply_pool(SPEC)
        allocator.claim("email", org="org-1", ttl=3_600)
        yield allocator


@pytest.fixture(scope="module")
def reconciler(database: Database, ports: PortAllocator) -> Iterator[Reconciler]:
    leader = Leader(ports)
    yield Reconciler(ports, database, open_layout(database, NAMES), leader=leader)
    leader.give_up()


OTHERS = (
    {"pool": "another", "organization_id": "org-1", "plugin_id": "email", "instance": 0, "host": "web-1",
     "port": 17_000, "runtime_state": "ready", "fence": 5},
    {"pool": "another", "organization_id": "org-2", "plugin_id": "stripe", "instance": 0, "host": None, "port": 17_001,
     "runtime_state": "ready", "fence": None},
)  # fmt: skip


def put(table: Table, row: dict[str, Any]) -> None:
    """Insert a row past all types, as far as the database takes it."""
    columns = ", ".join(row)
    marks = ", ".join(f":{name}" for name in row)
    with contextlib.suppress(sa.exc.SQLAlchemyError, ValueError, OverflowError):
        table.run(f"INSERT INTO plugin_runners ({columns}) VALUES ({marks})", **row)


@given(strange=st.lists(rows(), min_size=1, max_size=5))
@example(strange=[{"organization_id": "o", "plugin_id": "p", "instance": "x", "runtime_state": "ready"}])
@example(strange=[{"organization_id": "o", "plugin_id": "p", "instance": 0, "host": "a", "port": "x", "fence": 1,
                   "runtime_state": "ready"}])  # fmt: skip
@example(strange=[{"organization_id": "o", "plugin_id": "p", "instance": 0, "host": b"a", "port": 1, "fence": "x",
                   "runtime_state": "ready", "lease_expires_at": "x"}])  # fmt: skip
@examples(20)
def test_a_pass_over_any_rows_ends_in_order_and_names_no_other(
    database: Database, ports: PortAllocator, reconciler: Reconciler, strange: list[dict[str, Any]]
) -> None:
    table = Table(database, SPEC.name)
    table.run("DELETE FROM plugin_runners")
    for row in OTHERS:
        put(table, row)
    for row in strange:
        put(table, {"pool": SPEC.name} | row)
    query = "SELECT * FROM plugin_runners WHERE pool = 'another' ORDER BY organization_id"
    before = table.run(query)
    assert len(before) == len(OTHERS)

    reconciler.leader.take()
    accepted(lambda: drift(reconciler))
    accepted(lambda: reconciler.run(Report(pending=[])))
    accepted(lambda: reconciler.run(Report()))
    accepted(lambda: list(manual_rows(ports, database, reconciler.rows)))
    accepted(lambda: unexplained_rows(ports, database, reconciler.rows))
    accepted(lambda: check(database, NAMES))
    accepted(lambda: restore_from_rows(ports, database, reconciler.rows.layout, 1_000))

    assert table.run(query) == before
    mine = [row for row in table.run("SELECT * FROM plugin_runners WHERE pool = :pool", pool=SPEC.name)
            if (row["organization_id"], row["plugin_id"], row["instance"]) == ("org-1", "email", 0)]  # fmt: skip
    assert len(mine) <= 1
    assert [lease.org for lease in ports.leases()] == ["org-1"]
    with contextlib.suppress(ExhaustedError):
        assert ports.release(ports.claim("probe", org="org-9"))
