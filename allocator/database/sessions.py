"""Sessions of PostgreSQL: what is set in each transaction, and a connection that waits for no answer without end.

The rules of this file: nothing is left in the session, for behind PgBouncer in transaction mode the next transaction is
on another one: all settings end with their transaction, and no statement is prepared. A server that is stopped, or
whose host went silent, is given up by this side's clock, for neither sends an error.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.adapt import Loader
from psycopg.pq import ConnStatus, Format

if TYPE_CHECKING:
    from collections.abc import Generator

    from psycopg.abc import AdaptContext, Buffer
    from psycopg.abc import Loader as AbstractLoader
    from sqlalchemy import Connection

ANSWER_S = 5.0
"""How long a server may be silent outside of a transaction of ours: SQLAlchemy's first questions, a roll-back."""

SLACK_S = 2.0
"""The server applies a limit first, because its error is more precise; this side gives up so much later."""

KEEPALIVE = {
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 2,
    "tcp_user_timeout": 10_000,
    "client_encoding": "utf8",
}

_READ_ALIKE = (
    "SET TRANSACTION ISOLATION LEVEL READ COMMITTED",
    "SET LOCAL search_path TO DEFAULT",  # of the role or the database, whatever another client of PgBouncer left
    "SET LOCAL DateStyle TO 'ISO'",
    "SET LOCAL IntervalStyle TO 'postgres'",
    "SET LOCAL TimeZone TO 'UTC'",
    "SET LOCAL bytea_output TO 'hex'",
    "SET LOCAL standard_conforming_strings TO on",
)
"""What changes how values are read or written; a role or a database may set it otherwise."""


class LimitedConnection(psycopg.Connection[Any]):
    """A connection of which every wait for the server has an end; after it the connection is closed.

    Attributes:
        until: By this process' monotonic clock, when the transaction has to have its last answer; None outside of one.
    """

    until: float | None = None

    def wait(self, gen: Generator[Any, Any, Any], *rest: Any, **options: Any) -> Any:  # noqa: ANN401  # as the base's
        """Wait for the server, as the base does, until the limit."""
        until = self.until if self.until is not None else time.monotonic() + ANSWER_S
        return super().wait(self._limited(gen, until), *rest, **options)

    def _limited(self, gen: Generator[Any, Any, Any], until: float) -> Generator[Any, Any, Any]:
        began = time.monotonic()
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                if not ready and time.monotonic() > until:
                    if self.pgconn.status != ConnStatus.BAD:
                        self.pgconn.finish()
                    raise psycopg.OperationalError(f"no answer for {time.monotonic() - began:.1f} s")
                wanted = gen.send(ready)
        except StopIteration as end:
            return end.value


def begin(connection: Connection, *, limit_s: float, lock_s: float, idle_s: float) -> None:
    """Begin a transaction with its limits and with settings that are the same for every role.

    Args:
        connection: Just taken out of the pool.
        limit_s: For how long a statement may run.
        lock_s: For how long it may wait for a lock.
        idle_s: After how long without a statement the server ends the transaction.
    """
    limits = {"statement_timeout": limit_s, "lock_timeout": lock_s, "idle_in_transaction_session_timeout": idle_s}
    statements = [
        *_READ_ALIKE,
        *(f"SET LOCAL {name} = {max(1, round(seconds * 1_000))}" for name, seconds in limits.items()),
    ]
    connection.execution_options(no_parameters=True).exec_driver_sql("; ".join(statements))


def prepare(connection: LimitedConnection, _record: object) -> None:
    """Let a moment that Python has no datetime for (`infinity`, 4713 BC) be unknown instead of ending what reads it."""
    for name in ("timestamptz", "timestamp"):
        oid = connection.adapters.types[name].oid
        base = connection.adapters.get_loader(oid, Format.TEXT)
        if base is not None:
            connection.adapters.register_loader(oid, _forgiving(base))


def _forgiving(base: type[AbstractLoader]) -> type[Loader]:
    """Return a loader that gives None for what another cannot load."""

    class Moment(Loader):
        def __init__(self, oid: int, context: AdaptContext | None = None) -> None:
            super().__init__(oid, context)
            self._load = base(oid, context).load

        def load(self, data: Buffer) -> Any:  # noqa: ANN401  # as the base's
            try:
                return self._load(data)
            except psycopg.DataError:
                return None

    return Moment
