"""A database: connections for reading and for writing, made when they are first needed.

The rule of this file: a write is one short transaction, and what waits for a lock waits for seconds, never for ever.
PostgreSQL ends a transaction of ours that stands idle (a writer that was stopped), so that nobody waits for it; in
SQLite a writer takes its lock at the beginning, so that it cannot find itself between two others.
"""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from allocator.database.errors import translated
from allocator.database.urls import default_url, parse_database_url
from allocator.model.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import URL, Connection, Engine

LOCK_TIMEOUT_S = 5.0
"""How long a writer waits for another's lock: longer than any transaction of ours, shorter than patience."""

IDLE_TRANSACTION_S = 5.0
"""After how long PostgreSQL ends a transaction whose writer went silent in the middle."""

_WRITES = "allocator_writes"


class Database:
    """A database and its connections; safe for threads.

    Args:
        url: Where it is.
        timeout_s: For how many seconds it may be silent while connecting.

    All methods raise DatabaseUnavailableError when it does not answer, and ConfigurationError when it cannot be used.
    """

    def __init__(self, url: URL, *, timeout_s: float = 5.0) -> None:
        self.shown_url = url.set(drivername=url.get_backend_name()).render_as_string(hide_password=True)
        self.is_sqlite = url.get_backend_name() == "sqlite"
        self._url = url
        self._timeout_s = timeout_s
        self._engine: Engine | None = None

    def __repr__(self) -> str:
        return f"<Database {self.shown_url}, {'open' if self._engine else 'not opened yet'}>"

    @classmethod
    def open(cls, url: str, *, timeout_s: float = 5.0, password: str | None = None) -> Self:
        """Return the database at a URL; nothing is sent yet.

        Args:
            url: `postgresql://…` or `sqlite:///…`.
            timeout_s: For how many seconds it may be silent while connecting.
            password: The password when the URL has none.

        Raises:
            ConfigurationError: When the URL cannot be read, or SQLAlchemy is not installed.
        """
        with _installed():
            return cls(parse_database_url(url, password=password), timeout_s=timeout_s)

    @classmethod
    def beside(cls, state_dir: Path, *, timeout_s: float = 5.0) -> Self:
        """Return the SQLite database that serves when none is configured, beside the embedded server's data."""
        with _installed():
            return cls(default_url(state_dir), timeout_s=timeout_s)

    @property
    def engine(self) -> Engine:
        """SQLAlchemy's engine, made when it is first asked for."""
        if self._engine is None:
            with _installed():
                self._engine = self._new_engine()
        return self._engine

    def _new_engine(self) -> Engine:
        from sqlalchemy import create_engine, event

        options: dict[str, Any] = {}
        if self.is_sqlite:
            options["connect_args"] = {"timeout": LOCK_TIMEOUT_S}
        else:
            options["connect_args"] = {
                "connect_timeout": max(2, round(self._timeout_s)),
                "application_name": "portlease",
                "keepalives_idle": 10,
                "keepalives_interval": 5,
                "keepalives_count": 2,
            } | dict(self._url.query)
            options["pool_pre_ping"] = True
        # It logs the traceback of a connection that broke under a read; the error is raised too, and said in one line.
        logging.getLogger("sqlalchemy.pool").setLevel(logging.CRITICAL)
        engine = create_engine(self._url, **options)
        if self.is_sqlite:
            event.listen(engine, "connect", _prepare_sqlite)
            event.listen(engine, "begin", _begin_sqlite)
        else:
            event.listen(engine, "connect", _prepare_postgresql)
        return engine

    @contextlib.contextmanager
    def reading(self) -> Iterator[Connection]:
        """Give a connection for reads, in a transaction that is rolled back at the end."""
        with translated(self.shown_url, writes=False), self.engine.connect() as connection:
            yield connection

    @contextlib.contextmanager
    def writing(self) -> Iterator[Connection]:
        """Give a connection in a transaction that is committed at the end, or rolled back when the block raises.

        Raises:
            RowRefusedError: When a constraint or trigger refuses what was written; its writer decides.
        """
        from sqlalchemy import text

        with translated(self.shown_url, writes=True), self.engine.connect() as base:
            connection = base.execution_options(**{_WRITES: True})
            with connection.begin():
                if not self.is_sqlite:
                    connection.execute(text(f"SET LOCAL lock_timeout = {LOCK_TIMEOUT_S * 1_000:.0f}"))
                    idle = f"SET LOCAL idle_in_transaction_session_timeout = {IDLE_TRANSACTION_S * 1_000:.0f}"
                    connection.execute(text(idle))
                yield connection

    def exists(self) -> bool:
        """Return whether there is something to connect to: a SQLite file is made by its first writer."""
        return not self.is_sqlite or Path(str(self._url.database)).exists()

    def close(self) -> None:
        """Close all connections."""
        if self._engine is not None:
            self._engine.dispose()
            self._engine = None


@contextlib.contextmanager
def _installed() -> Iterator[None]:
    from importlib.util import find_spec

    if find_spec("sqlalchemy") is None:
        raise ConfigurationError("SQLAlchemy is not installed; pip install 'portlease[sql]'")
    try:
        yield
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"the database driver {error.name} is not installed; pip install 'portlease[sql]'"
        ) from None


def _prepare_postgresql(connection: Any, _record: object) -> None:  # noqa: ANN401  # a connection of the driver
    """Let a moment that Python has no datetime for (`infinity`, 4713 BC) be unknown instead of ending what reads it."""
    from psycopg import DataError
    from psycopg.adapt import Loader
    from psycopg.pq import Format

    class Moment(Loader):
        def __init__(self, oid: int, context: Any = None) -> None:  # noqa: ANN401  # as the base's
            super().__init__(oid, context)
            self._load = of_the_driver[oid](oid, context).load

        def load(self, data: Any) -> Any:  # noqa: ANN401  # as the base's
            try:
                return self._load(data)
            except DataError:
                return None

    oids = [connection.adapters.types[name].oid for name in ("timestamptz", "timestamp")]
    of_the_driver = {oid: connection.adapters.get_loader(oid, Format.TEXT) for oid in oids}
    for oid in oids:
        connection.adapters.register_loader(oid, Moment)


def _prepare_sqlite(connection: Any, _record: object) -> None:  # noqa: ANN401  # a connection of the driver
    import sqlite3

    connection.isolation_level = None  # transactions begin where `_begin_sqlite` says, not at the first change
    cursor = connection.cursor()
    # Readers and the writer do not wait for each other. A file that this user may only read stays as it is, and one
    # that is no database says so at the first statement.
    with contextlib.closing(cursor), contextlib.suppress(sqlite3.DatabaseError):
        cursor.execute(f"PRAGMA busy_timeout = {LOCK_TIMEOUT_S * 1_000:.0f}")
        cursor.execute("PRAGMA synchronous = NORMAL")
        cursor.execute("PRAGMA journal_mode = WAL")


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get(_WRITES)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
