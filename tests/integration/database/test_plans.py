"""How the databases read the rows: by an index, without sorting, however large they believe the table to be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from allocator.database.reconciler import differences
from allocator.database.rows import READ_AT_ONCE, RowKey, Rows
from allocator.database.upgrade import open_layout
from allocator.model.tables import TableNames

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

    from allocator import PortAllocator
    from allocator.database.connection import Database

NAMES = TableNames()
HOSTS = ("A-large", "a-small", "b-small")
ROWS = READ_AT_ONCE + 100


def fill(database: Database, pool: str) -> None:
    """Write the rows of a host of more than a page and of two small ones, as nobody has counted them yet."""
    numbers = f"WITH RECURSIVE s(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM s WHERE n < {ROWS - 1}) "
    columns = "pool, organization_id, plugin_id, instance, host, port, runtime_state, fence"
    with database.writing() as connection:
        for host, rows in zip(HOSTS, (ROWS, 3, 2), strict=True):
            connection.exec_driver_sql(
                f"INSERT INTO plugin_runners ({columns}) {numbers} "
                f"SELECT '{pool}', 'org-' || n, '{host}', 0, '{host}', 10000 + n, 'ready', 7 FROM s WHERE n < {rows}"
            )


def plans(database: Database, read: Callable[[], object]) -> list[str]:
    """Return the plan of each query that something makes of the rows."""
    found: list[str] = []
    explain = "EXPLAIN QUERY PLAN " if database.is_sqlite else "EXPLAIN "

    def look(_connection: object, cursor: Any, statement: str, values: Any, *_: object) -> None:
        if "FROM plugin_runners" in statement or "plugin_runners.host" in statement:
            cursor.execute(explain + statement, values)
            found.append("\n".join(str(line[-1]) for line in cursor.fetchall()))

    sa.event.listen(database.engine, "before_cursor_execute", look)
    try:
        read()
    finally:
        sa.event.remove(database.engine, "before_cursor_execute", look)
    return found


def test_each_page_of_a_walk_is_read_by_the_index_and_not_sorted(database: Database) -> None:
    fill(database, "p")
    rows = Rows(open_layout(database, NAMES), "p")
    walked: list[tuple[str, int]] = []
    count, *pages = plans(database, lambda: walked.extend(row.address for row in rows.in_order(database)))
    assert walked == sorted(walked)
    assert len(walked) == ROWS + 5
    assert len(pages) == 3, "two of the large host, one of the small ones"
    assert "plugin_runners_live" in count
    for plan in pages:
        assert "plugin_runners_live" in plan
        assert not any(part in plan for part in ("Sort", "TEMP B-TREE", "Seq Scan", "SCAN plugin_runners")), plan


def test_rows_of_workers_and_addresses_are_looked_up_one_by_one(database: Database) -> None:
    fill(database, "p")
    rows = Rows(open_layout(database, NAMES), "p")
    keys = [RowKey(f"org-{n}", "A-large", 0) for n in range(200)]
    addresses = [("A-large", 10_000 + n) for n in range(200)]

    def read() -> None:
        with database.reading() as connection:
            assert set(rows.of_workers(connection, keys)) == set(keys)
            assert set(rows.at_addresses(connection, addresses)) == set(addresses)

    of_workers, at_addresses = plans(database, read)
    if database.is_sqlite:
        assert "pool=? AND organization_id=? AND plugin_id=? AND instance=?" in of_workers
        assert "pool=? AND host=? AND port=?" in at_addresses
    else:
        assert "Index Scan using plugin_runners_pkey" in of_workers
        assert "Index Scan using plugin_runners_live" in at_addresses


def test_small_hosts_come_in_the_order_of_bytes_whatever_a_page_holds(
    database: Database, ports: PortAllocator, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(database, ports.session.pool)
    for size in (500, ROWS + 5):
        monkeypatch.setattr("allocator.database.rows.READ_AT_ONCE", size)
        found = [(one.host, one.port) for one in differences(ports, database, NAMES) if str(one.kind) == "unknown-row"]
        assert len(found) == ROWS + 5
        assert found == sorted(found)
