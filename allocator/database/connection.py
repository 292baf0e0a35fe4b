"""A database: connections for reading and for writing, made when they are first needed.

The rule of this file: each transaction is short, and one thread never has two at once, for a migration that waits
between them would wait for ever. What waits (for a lock, a statement, a server that went silent) waits for seconds.
PostgreSQL ends a transaction of ours that stands idle (a writer that was stopped), so that nobody waits for it; in
SQLite a writer takes its lock at the beginning, so that it cannot find itself between two others.
"""

from __future__ import annotations

import contextlib
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from allocator.database.errors import translated
from allocator.database.urls import default_url, parse_database_url, shown_url
from allocator.model.errors import ConfigurationError, DatabaseUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import URL, Connection, Engine

LOCK_TIMEOUT_S = 5.0
"""How long a statement waits for another's lock: longer than any transaction of ours, shorter than patience."""

IDLE_TRANSACTION_S = 5.0
"""After how long PostgreSQL ends a transaction whose client went silent in the middle."""

STATEMENT_S = 10.0
"""How long a statement may run: a page of a million rows that no index orders takes two."""

GREETING_S = 2.0
"""How long a connection that was kept may take for its first answer: its backend may be stopped, or its route gone."""

_WRITES = "allocator_writes"


class Database:
    """A database and its connections; safe for threads.

    Args:
        url: Where it is.
        timeout_s: For how many seconds it may be silent while connecting.

    All methods raise DatabaseUnavailableError when it does not answer, and ConfigurationError when it cannot be used.
    """

    def __init__(self, url: URL, *, timeout_s: float = 5.0) -> None:
        self.shown_url = shown_url(url)
        self.is_sqlite = url.get_backend_name() == "sqlite"
        self.timeout_s = timeout_s
        self._url = url
        self._engine: Engine | None = None
        self._file_id: tuple[int, int] | None = None

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

        # It logs the traceback of a connection that broke under a read; the error is raised too, in one line.
        logging.getLogger("sqlalchemy.pool").setLevel(logging.CRITICAL)
        if self.is_sqlite:
            engine = create_engine(self._url, connect_args={"timeout": LOCK_TIMEOUT_S})
            event.listen(engine, "connect", self._opened_file)
            event.listen(engine, "begin", _begin_sqlite)
            return engine
        from allocator.database.sessions import KEEPALIVE, LimitedConnection, prepare

        options = {
            "connect_timeout": max(2, round(self.timeout_s)),
            "application_name": "portlease",
            **KEEPALIVE,
            **self._url.query,
            "prepare_threshold": None,
        }
        engine = create_engine(self._url, connect_args=options, pool_timeout=self.timeout_s)
        event.listen(
            engine,
            "do_connect",
            lambda _dialect, _record, args, parameters: LimitedConnection.connect(*args, **parameters),
        )
        event.listen(engine, "connect", prepare)
        return engine

    @contextlib.contextmanager
    def reading(self, *, limit_s: float | None = None) -> Iterator[Connection]:
        """Give a connection for reads, in a transaction that is rolled back at the end.

        Args:
            limit_s: For how many seconds a statement may run, and PostgreSQL may be silent in all; None for
                `STATEMENT_S`.
        """
        with (
            translated(self.shown_url, writes=False),
            self._transaction(limit_s or STATEMENT_S, writes=False) as connection,
        ):
            yield connection

    @contextlib.contextmanager
    def writing(self, *, limit_s: float | None = None, lock_s: float | None = None) -> Iterator[Connection]:
        """Give a connection in a transaction that is committed at the end, or rolled back when the block raises.

        Args:
            limit_s: As for reading.
            lock_s: For how many seconds a statement waits for another's lock; None for the usual time.

        Raises:
            RowRefusedError: When a constraint or trigger refuses what was written; its writer decides.
        """
        with (
            translated(self.shown_url, writes=True),
            self._transaction(limit_s or STATEMENT_S, lock_s, writes=True) as connection,
        ):
            yield connection
            connection.commit()

    @contextlib.contextmanager
    def _transaction(self, limit_s: float, lock_s: float | None = None, *, writes: bool) -> Iterator[Connection]:
        """Give a connection with its limits; one that ended with an error of the database is not used again."""
        from sqlalchemy.exc import DBAPIError

        if self.is_sqlite:
            self._check_file()
            with self.engine.connect().execution_options(**{_WRITES: writes}) as connection:
                yield connection
            return
        connection = self._begun(limit_s, min(LOCK_TIMEOUT_S, limit_s) if lock_s is None else lock_s)
        with connection:
            try:
                yield connection
            except DBAPIError:
                _discard(connection)
                raise
            finally:
                _limit(connection, None)

    def _begun(self, limit_s: float, lock_s: float) -> Connection:
        """Return a connection in a new transaction; one that was kept and is of no use any more is replaced."""
        from sqlalchemy.exc import DBAPIError

        from allocator.database.sessions import SLACK_S, begin

        for is_last in (False, True):
            connection = self.engine.connect()
            try:
                _limit(connection, min(GREETING_S, limit_s))
                begin(connection, limit_s=limit_s, lock_s=lock_s, idle_s=IDLE_TRANSACTION_S)
                _limit(connection, limit_s + SLACK_S)
            except DBAPIError as error:
                was_lost = error.connection_invalidated
                _discard(connection)
                connection.close()
                if is_last or not was_lost:
                    raise
            except BaseException:
                connection.close()
                raise
            else:
                return connection
        raise AssertionError("unreachable")

    def _opened_file(self, connection: Any, record: object) -> None:  # noqa: ANN401  # a connection of the driver
        _prepare_sqlite(connection, record)
        self._file_id = self._file_now()

    def _file_now(self) -> tuple[int, int] | None:
        """Return which file has the name of a SQLite database, or None for none."""
        with contextlib.suppress(OSError):
            found = Path(str(self._url.database)).stat()
            return found.st_dev, found.st_ino
        return None

    def _check_file(self) -> None:
        """Close a SQLite file that was removed or replaced: what is written into it, nobody sees any more."""
        if self._engine is None or self._file_id is None:
            return
        now = self._file_now()
        if now == self._file_id:
            return
        self._engine.dispose()
        if now is None:
            raise DatabaseUnavailableError(
                f"the database at {self.shown_url} was removed; put its file back, or run 'allocator db upgrade'"
            )
        self._file_id = None

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


def _limit(connection: Connection, seconds: float | None) -> None:
    """Set from now on how long a connection of PostgreSQL waits for answers in all."""
    if not connection.closed and not connection.invalidated:
        driver: Any = connection.connection.driver_connection
        driver.until = None if seconds is None else time.monotonic() + seconds


def _discard(connection: Connection) -> None:
    """Let the pool keep a connection no longer: its session may be read-only, or half ended."""
    if not connection.closed and not connection.invalidated:
        connection.invalidate()


def _prepare_sqlite(connection: Any, _record: object) -> None:  # noqa: ANN401  # a connection of the driver
    import sqlite3

    connection.isolation_level = None  # `_begin_sqlite` begins the transactions, not the first change
    cursor = connection.cursor()
    # Readers and the writer do not wait for each other. A file that this user may only read stays as it is, and one
    # that is not a database reports it at the first statement.
    with contextlib.closing(cursor), contextlib.suppress(sqlite3.DatabaseError):
        cursor.execute(f"PRAGMA busy_timeout = {LOCK_TIMEOUT_S * 1_000:.0f}")
        cursor.execute("PRAGMA synchronous = NORMAL")
        cursor.execute("PRAGMA journal_mode = WAL")


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get(_WRITES)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
