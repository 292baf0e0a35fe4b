"""The fenced writes of the rows of the table of workers.

The rules of this file: a write takes effect only on a row whose fence is not newer than its own, decided by the
database within the statement; values are bound, never written into a statement; a row of another pool is never named.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import sqlalchemy as sa

from allocator.database.errors import RowRefusedError
from allocator.database.rows import Rows
from allocator.model.tables import COLUMNS, STOPPED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection

    from allocator.database.rows import Row, RowKey
    from allocator.model.leases import Lease

MAX_FENCE = 2**53 - 1
"""The largest that the scripts count exactly; one beyond it would keep all later ones from growing."""

_NEVER_REPLACED = {"pool", "organization_id", "plugin_id", "instance", "created_at"}
_FOLLOWS_LEASE = tuple(column for column in COLUMNS if column not in _NEVER_REPLACED)
"""What an upsert replaces; `created_at` and what others added stay."""


class Stop(NamedTuple):
    """The end of a row: its key, the fence up to which that holds, its last state and why."""

    key: RowKey
    fence: int | None
    state: str
    why: str | None


class DeposedError(Exception):
    """Another reconciler leads since: nothing was written."""


class FencedRows(Rows):
    """The rows of one pool, for those who write them."""

    def leader_fence(self, connection: Connection) -> int:
        """Return the fence of the last leader that wrote, 0 when there was none or it can be no leader's."""
        leaders = self.layout.leaders
        query = sa.select(leaders.c.fence).where(leaders.c.pool == self.pool)
        fence = connection.execute(query).scalar_one_or_none() or 0
        return fence if fence <= MAX_FENCE else 0

    def check_written(
        self, connection: Connection, leases: Sequence[tuple[RowKey, Lease]], stops: Sequence[Stop] = ()
    ) -> None:
        """Read back what was written: triggers and rules may have made something different of it.

        Raises:
            RowRefusedError: When they did, for the first such row.
        """
        rows = self.of_workers(connection, [key for key, _ in leases] + [one.key for one in stops])
        for key, lease in leases:
            row = rows.get(key)
            if row is None or (row.fence or 0) < lease.fence:
                raise RowRefusedError("it drops the row without an error; see its triggers and rules")
            if row.fence == lease.fence and (made := _made_of(lease, row)):
                raise RowRefusedError(f"it makes {made} of what is written; see its triggers and rules")
        for stop in stops:
            row = rows.get(stop.key)
            if row is not None and row.is_live and (row.fence or 0) <= (stop.fence or 0):
                raise RowRefusedError("it drops the change without an error; see its triggers and rules")

    def lead(self, connection: Connection, *, fence: int, holder: str, now: float) -> None:
        """Enter that this leader writes, at the beginning of its transaction.

        Raises:
            DeposedError: When a newer leader wrote before.
        """
        leaders = self.layout.leaders
        entry = self._insert(connection, leaders).values(pool=self.pool, fence=fence, holder=holder, updated_at=now)
        entry = entry.on_conflict_do_update(
            index_elements=[leaders.c.pool],
            set_={name: entry.excluded[name] for name in ("fence", "holder", "updated_at")},
            where=sa.or_(leaders.c.fence <= entry.excluded.fence, leaders.c.fence > MAX_FENCE),
        )
        if self._changed(connection, entry) == 0:
            raise DeposedError

    def upsert(
        self, connection: Connection, leases: Sequence[tuple[RowKey, Lease]], now: float, *, same_fence: bool
    ) -> int:
        """Write the rows of live leases; a row with a newer fence stays as it is.

        Args:
            connection: In a transaction.
            leases: The leases with the keys of their rows.
            now: The time, in Unix seconds by Redis's clock.
            same_fence: Whether a row of the very same fence is replaced; only a leader may.

        Returns:
            How many rows were written.

        Raises:
            RowRefusedError: When a constraint or trigger refuses one of them; none is written then.
        """
        if not leases:
            return 0
        runners, fence = self.layout.runners, self.layout.column("fence")
        entry = self._insert(connection, runners)
        newer = fence <= entry.excluded.fence if same_fence else fence < entry.excluded.fence
        entry = entry.on_conflict_do_update(
            index_elements=list(self.layout.worker_key),
            set_={name: entry.excluded[name] for name in _FOLLOWS_LEASE if self.layout.has(name)},
            where=sa.or_(fence.is_(None), newer),
        )
        ids = self._ids(connection, [key for key, _ in leases])
        unknown = self.unknown_names(connection, [key for key, _ in leases if key not in ids])
        for why in unknown.values():
            raise RowRefusedError(why)
        return self._changed(connection, entry, [self.values(ids[key], lease, now) for key, lease in leases])

    def values(self, ids: tuple[Any, Any], lease: Lease, now: float) -> dict[str, Any]:
        """Return the values of a live lease's row, by column."""
        org, plugin = ids
        values = {
            "pool": self.pool,
            "organization_id": org,
            "plugin_id": plugin,
            "instance": lease.instance,
            "host": lease.host,
            "port": lease.port,
            "runtime_state": self.layout.names.value_of(str(lease.state)),
            "fence": lease.fence,
            "pid": lease.pid,
            "lease_expires_at": lease.expires_at,
            "restart_count": lease.restarts,
            "last_error": lease.last_error,
            "created_at": now,
            "updated_at": now,
            "stopped_at": None,
        }
        return {name: value for name, value in values.items() if self.layout.has(name)}

    def refresh(self, connection: Connection, leases: Sequence[tuple[RowKey, Lease]]) -> int:
        """Write how long leases live, into rows of the very same fence."""
        if not leases or not self.layout.has("lease_expires_at"):
            return 0
        runners = self.layout.runners
        statement = (
            sa.update(runners)
            .where(*self._of_key(), self.layout.column("fence") == sa.bindparam("its_fence"))
            .values(lease_expires_at=sa.bindparam("until"))
        )
        ids = self._ids(connection, [key for key, _ in leases])
        parameters = [
            self._key(key, ids[key]) | {"its_fence": one.fence, "until": one.expires_at}
            for key, one in leases
            if key in ids
        ]
        return self._changed(connection, statement, parameters)

    def stop(self, connection: Connection, stops: Sequence[Stop], now: float) -> int:
        """End live rows whose fence is not newer than the one that was seen to end; return how many were."""
        if not stops:
            return 0
        fence = self.layout.column("fence")
        its_fence = sa.bindparam("its_fence", type_=sa.BigInteger())
        statement = (
            sa.update(self.layout.runners)
            .where(*self._of_key(), self.layout.is_live, sa.or_(fence.is_(None), fence <= its_fence))
            .values(runtime_state=self._bound("its_state", "runtime_state"), fence=its_fence, **self._of_an_end())
        )
        ids = self._ids(connection, [one.key for one in stops])
        parameters = [
            self._key(one.key, ids[one.key])
            | {"its_fence": one.fence, "its_state": self.layout.names.value_of(one.state), "why": one.why}
            | {"moment": now, "moment_too": now}
            for one in stops
            if one.key in ids
        ]
        return self._changed(connection, statement, parameters)

    def _bound(self, parameter: str, column: str) -> sa.BindParameter[Any]:
        return sa.bindparam(parameter, type_=self.layout.column(column).type)

    def _of_an_end(self) -> dict[str, Any]:
        """Return what an ended row states of its end, as far as the table has columns for it."""
        values: dict[str, Any] = {}
        if self.layout.has("last_error"):
            why = sa.bindparam("why", type_=sa.Text())
            values["last_error"] = sa.func.coalesce(why, self.layout.column("last_error"))
        for column, parameter in (("updated_at", "moment"), ("stopped_at", "moment_too")):
            if self.layout.has(column):
                values[column] = self._bound(parameter, column)
        return values

    def make_way(
        self, connection: Connection, leases: Sequence[tuple[RowKey, Lease]], now: float, *, unfenced: bool
    ) -> int:
        """End live rows of other workers, with older fences, at the places of leases; return how many were ended.

        Args:
            connection: In a transaction.
            leases: The leases with the keys of their own rows.
            now: The time, in Unix seconds.
            unfenced: Whether rows without a fence count as older, and rows of the lease's own fence, whose key
                somebody changed by hand; only a leader may.
        """
        if not leases:
            return 0
        columns = self.layout.column
        fence = columns("fence")
        its_fence = sa.bindparam("its_fence", type_=sa.BigInteger())
        older = fence <= its_fence if unfenced else fence < its_fence
        others = [columns(name) != sa.bindparam(f"key_{name}") for name in ("organization_id", "plugin_id", "instance")]
        statement = (
            sa.update(self.layout.runners)
            .where(
                columns("pool") == self.pool,
                columns("host") == sa.bindparam("its_host"),
                columns("port") == sa.bindparam("its_port"),
                self.layout.is_live,
                sa.or_(*others),
                sa.or_(fence.is_(None), older) if unfenced else older,
            )
            .values(runtime_state=self.layout.names.value_of(STOPPED), **self._of_an_end())
        )
        ids = self._ids(connection, [key for key, _ in leases])
        parameters = [
            self._key(key, ids[key])
            | {
                "its_host": lease.host,
                "its_port": lease.port,
                "its_fence": lease.fence,
                "why": f"its port was leased to {lease.worker}",
                "moment": now,
                "moment_too": now,
            }
            for key, lease in leases
            if key in ids
        ]
        return self._changed(connection, statement, parameters)

    @staticmethod
    def _changed(connection: Connection, statement: Any, parameters: list[dict[str, Any]] | None = None) -> int:  # noqa: ANN401  # an insert or an update
        """Run a statement, once or for each of several sets of values, and return how many rows it changed."""
        if parameters is not None and not parameters:
            return 0
        counted = statement.execution_options(preserve_rowcount=True)
        result = connection.execute(counted, parameters) if parameters else connection.execute(counted)
        return int(result.rowcount)

    def _of_key(self) -> list[sa.ColumnElement[bool]]:
        columns = self.layout.column
        return [
            columns("pool") == self.pool,
            *(columns(name) == sa.bindparam(f"key_{name}") for name in ("organization_id", "plugin_id", "instance")),
        ]

    @staticmethod
    def _key(key: RowKey, ids: tuple[Any, Any]) -> dict[str, Any]:
        return {"key_organization_id": ids[0], "key_plugin_id": ids[1], "key_instance": key.instance}

    @staticmethod
    def _insert(connection: Connection, table: sa.Table) -> Any:  # noqa: ANN401  # the insert of one of two dialects
        if connection.dialect.name == "sqlite":
            from sqlalchemy.dialects.sqlite import insert as sqlite_insert

            return sqlite_insert(table)
        from sqlalchemy.dialects.postgresql import insert

        return insert(table)


def _made_of(lease: Lease, row: Row) -> str:
    """Return where a row leads others astray that was written for a lease, or an empty text."""
    state = str(lease.state)
    pairs = (
        ("host", row.host, lease.host),
        ("port", row.port, lease.port),
        ("state", state if row.is_in(state) else row.state, state),
    )
    return ", ".join(f"{name} {made} instead of {meant}" for name, made, meant in pairs if made != meant)
