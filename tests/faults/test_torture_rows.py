"""The database of a round watches over the fences of its rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torture.checker import check
from torture.history import History
from torture.sql import Table

if TYPE_CHECKING:
    from postgres import Postgres

PUT = (
    "INSERT INTO plugin_runners (pool, organization_id, plugin_id, instance, host, port, runtime_state, fence) "
    "VALUES ('p', 'o', 'email', 0, 'web-1', 9000, 'ready', 7)"
)


def test_an_older_fence_over_a_newer_one_is_a_violation_and_a_restored_copy_is_none(postgres: Postgres) -> None:
    table = Table(postgres)
    table.run(PUT)
    table.run("UPDATE plugin_runners SET fence = 8")
    copy = table.copy()
    table.run("UPDATE plugin_runners SET fence = 9, runtime_state = 'stopped'")
    assert table.live() == {}
    table.restore(copy)
    assert table.live() == {"o/email#0": ("web-1", 9000, 8)}
    assert table.lowered() == []
    table.run("UPDATE plugin_runners SET fence = 6")
    assert [violation.rule for violation in check(History(2.0, 0.5, rows=table.lowered()).finish())] == ["c: row"]
