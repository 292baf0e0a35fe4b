"""The table of workers under a test's hand: rows as other programs write them, differences as a person sees them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from allocator.database.reconciler import Reconciler, Report

if TYPE_CHECKING:
    from allocator.database.connection import Database

WATCH_POSTGRES = """
CREATE FUNCTION watch_fences() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF OLD.fence IS NOT NULL AND (NEW.fence IS NULL OR NEW.fence < OLD.fence) THEN
    INSERT INTO lowered VALUES (OLD.organization_id, OLD.fence, NEW.fence);
  END IF;
  RETURN NEW;
END $$;
CREATE TRIGGER watch_fences BEFORE UPDATE ON plugin_runners FOR EACH ROW EXECUTE FUNCTION watch_fences()
"""
"""Notes in the table `lowered` each row that an older fence overwrites; for PostgreSQL."""


@dataclass
class Table:
    """The table of workers as others see it."""

    database: Database
    pool: str

    def run(self, statement: str, **values: Any) -> list[dict[str, Any]]:
        """Run a statement in a transaction of its own and return its rows."""
        writes = not statement.lstrip().startswith("SELECT")
        with (
            self.database.engine.connect().execution_options(allocator_writes=writes) as connection,
            connection.begin(),
        ):
            result = connection.execute(sa.text(statement), values)
            return [dict(row) for row in result.mappings()] if result.returns_rows else []

    def add(self, worker: str, **values: Any) -> None:
        """Insert a row by hand."""
        org, _, rest = worker.partition("/")
        plugin, _, instance = rest.partition("#")
        given = {
            "pool": self.pool,
            "organization_id": org,
            "plugin_id": plugin,
            "instance": int(instance or 0),
        } | values
        marks = ", ".join(f":{name}" for name in given)
        self.run(f"INSERT INTO plugin_runners ({', '.join(given)}) VALUES ({marks})", **given)

    def rows_of_pool(self) -> dict[str, dict[str, Any]]:
        """Return the rows of the pool by worker."""
        return {
            f"{row['organization_id']}/{row['plugin_id']}#{row['instance']}": row
            for row in self.run("SELECT * FROM plugin_runners WHERE pool = :pool", pool=self.pool)
        }

    def rows(self) -> dict[str, dict[str, Any]]:
        """Return all rows by worker."""
        return {
            f"{row['organization_id']}/{row['plugin_id']}#{row['instance']}": row
            for row in self.run("SELECT * FROM plugin_runners ORDER BY organization_id, plugin_id, instance")
        }

    def addresses(self) -> dict[str, tuple[str | None, int | None, str]]:
        """Return host, port and state of each worker."""
        return {worker: (row["host"], row["port"], row["runtime_state"]) for worker, row in self.rows().items()}


def drift(reconciler: Reconciler) -> dict[str, str]:
    """Return the kind of each difference, by worker or port, changing nothing."""
    looking = Reconciler(reconciler.allocator, reconciler.database, reconciler.rows.layout, leader=None)
    report = Report(pending=[])
    found = [one for _ in looking.walk(report) for one in report.take()]
    shown = {one.worker or f"port {one.port}": str(one.kind) for one in found}
    assert len(shown) == len(found), "a difference is shown twice"
    return shown
