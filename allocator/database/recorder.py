"""Write-through: the row of a lease is in the database before its claim returns, by the same fenced upsert.

```python
from allocator import DatabaseRecorder, PortAllocator

with DatabaseRecorder.open("postgresql://app@db/app") as recorder:
    with PortAllocator.from_url(recorder=recorder) as ports:
        lease = ports.claim("email", org="org-123", record=True)
```

The rule of this file: it writes one row, never over a newer fence, and ends another's row only when its caller has
made sure that Redis knows of that lease's end.
"""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Self

from allocator.database.configured import open_database
from allocator.database.connection import STATEMENT_S, Database
from allocator.database.errors import RowRefusedError
from allocator.database.fenced import FencedRows
from allocator.database.upgrade import check_writable, open_layout
from allocator.model.errors import ConfigurationError, HeldError
from allocator.model.settings import load_settings
from allocator.model.tables import TableNames
from allocator.operations.steps import Standing

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from allocator.database.layout import Layout
    from allocator.database.rows import Row, RowKey
    from allocator.model.leases import Lease
    from allocator.model.names import WorkerId


log = logging.getLogger("allocator")


class DatabaseRecorder:
    """Writes rows of leases for `claim(…, record=True)`; safe for threads.

    Args:
        database: Where the rows are.
        names: What the table and its columns are called.
    """

    def __init__(self, database: Database, names: TableNames | None = None) -> None:
        self._database = database
        self._names = names or TableNames()
        self._layout: Layout | None = None

    def __repr__(self) -> str:
        return f"<DatabaseRecorder {self._names} in {self._database.shown_url}>"

    @classmethod
    def open(
        cls,
        url: str | None = None,
        *,
        timeout: float | None = None,
        password: str | None = None,
        names: TableNames | None = None,
    ) -> Self:
        """Return a recorder for the database at `url`; nothing is sent to a server yet.

        Args:
            url: `postgresql://…` or `sqlite:///…`; None for the database of the settings (`ALLOCATOR_DATABASE_URL`,
                `allocator.toml`), and where they name none for a SQLite file in the state directory.
            timeout: For how many seconds it may be silent; None for that of the settings, 5 unless set.
            password: The password when the URL has none; None for that of the settings.
            names: The names of the table and its columns; None for those of the settings.

        Raises:
            ConfigurationError: When the URL or a settings file cannot be read, or SQLAlchemy is not installed.
        """
        settings = load_settings({"database_url": url}, os.environ)
        if timeout is not None:
            settings = replace(settings, connect_timeout_ms=round(timeout * 1_000))
        if password is not None:
            settings = replace(settings, database_password=password)
        database = open_database(
            settings, make=True, on_made=lambda made: log.warning("no database is configured: made %s", made)
        )
        return cls(database, names or settings.table)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def record(self, lease: Lease, *, over: Standing | None = None) -> Standing | None:
        """Write the row of a lease.

        Args:
            lease: The lease, as it was just granted.
            over: A row in the way that was returned before, and whose lease is known to have ended.

        Returns:
            The live row of another worker that has the lease's place, or None when the row is written.

        Raises:
            DatabaseUnavailableError: When the database does not answer.
            ConfigurationError: When it cannot be used, refuses the row for another reason, or drops it.
            HeldError: When the row is of a newer lease.
        """
        if self._layout is None:
            self._layout = open_layout(self._database, self._names)
        rows = FencedRows(self._layout, lease.pool)
        key = self._key_of(rows, lease.worker)
        now = lease.expires_at - lease.ttl_ms / 1_000
        limit_s = min(STATEMENT_S, self._database.timeout_s)
        try:
            with self._database.writing(limit_s=limit_s) as connection:
                standing = self._standing(connection, rows, key, lease)
                if standing and standing != over:
                    return standing
                if standing:
                    rows.make_way(connection, [(key, lease)], now, unfenced=False)
                if rows.upsert(connection, [(key, lease)], now, same_fence=False) == 0:
                    self._check_unwritten(rows.of_workers(connection, [key]).get(key), lease)
                rows.check_written(connection, [(key, lease)])
        except RowRefusedError as error:
            if error.may_be_the_table:
                self._layout = None  # it is read again: somebody may have changed the table
                check_writable(self._database, self._names, leads=False)
            return self._taken_meanwhile(rows, key, lease, error)
        return None

    def check(self, pool: str, worker: WorkerId) -> None:
        """Make sure that a worker can have a row, before it is given a lease.

        Raises:
            DatabaseUnavailableError: When the database does not answer.
            ConfigurationError: When the table cannot be used, or does not know the worker's plugin or organisation.
        """
        if self._layout is None:
            self._layout = open_layout(self._database, self._names)
        rows = FencedRows(self._layout, pool)
        key = self._key_of(rows, worker)
        if self._layout.named_by:
            with self._database.reading(limit_s=min(STATEMENT_S, self._database.timeout_s)) as connection:
                for why in rows.unknown_names(connection, [key]).values():
                    raise ConfigurationError(f"{worker} can have no row: {why}, or claim without recording")

    def _key_of(self, rows: FencedRows, worker: WorkerId) -> RowKey:
        key = rows.key_of(worker)
        if key is None:
            raise ConfigurationError(
                f"the table {self._names} holds organisations as uuids, and {worker.org} is none; claim with a uuid"
            )
        return key

    def _check_unwritten(self, row: Row | None, lease: Lease) -> None:
        """Look whether nothing was written because the row is of a newer lease."""
        if row is not None and row.fence is not None and row.fence > lease.fence:
            raise HeldError(
                f"the row of {lease.worker} is of a newer lease (fence {row.fence} on {row.host}:{row.port}) than that "
                f"of port {lease.port} on {lease.host} (fence {lease.fence}), and stays; see "
                "'allocator reconcile --dry-run', or 'pool restore --from-database' when Redis lost its leases",
                host=lease.host,
                port=lease.port,
                worker=str(lease.worker),
            )

    @staticmethod
    def _standing(connection: Connection, rows: FencedRows, key: RowKey, lease: Lease) -> Standing | None:
        row = rows.at_addresses(connection, [(lease.host, lease.port)]).get((lease.host, lease.port))
        return Standing(str(row.key), row.fence) if row and row.key != key else None

    def _taken_meanwhile(self, rows: FencedRows, key: RowKey, lease: Lease, error: RowRefusedError) -> Standing:
        with self._database.reading() as connection:
            standing = self._standing(connection, rows, key, lease)
        if standing is None:
            raise ConfigurationError(
                f"the table {self._names} refuses the row of {lease.worker} ({error.why}); change its constraints or "
                "triggers, or claim without recording"
            ) from error
        return standing

    def close(self) -> None:
        """Close the connections."""
        self._database.close()
