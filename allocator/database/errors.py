"""What an error of SQLAlchemy or of a driver means: one of ours, in one line, without secrets.

The rules of this file: what may pass by itself (a server that starts, a lock, a full disk) is 69; what an administrator
has to correct (a password, a right, a missing table) is 78. While rows are written, whatever is not about the
connection, a lock or a resource is about the row: triggers and policies raise any error that they like.
"""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING

from allocator.model.errors import AllocatorError, ConfigurationError, DatabaseUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator

_AUTHENTICATION = ("28P01", "28000")
_NO_RIGHTS = "42501"
_READ_ONLY = "25006"
_NO_DATABASE = "3D000"
_NO_TABLE = ("42P01", "42703", "3F000")
_KIND_REFUSED = ("0A", "42")
"""Classes of what the table cannot do as it is: a key over partitions, an index on a view, a generated column."""

_LOCKED = ("55P03", "40001", "40P01", "57014")
_NOT_OF_A_ROW = ("08", "25", "28", "3D", "53", "57", "58", *_LOCKED)
"""The connection, the session's state, who connects, which database, resources, an operator's intervention, locks."""

_OF_A_VALUE = ("22", "23", "P0")
"""What makes a row that is read unreadable."""

_IDLE_ENDED = "25P03"
_NO_ROOM = "53100"
_STARTING = "57P03"
_EXHAUSTED_CODE = "53300"
_EXHAUSTED = re.compile(
    r"too many clients|connection slots|too many connections|no more connections allowed|query_wait"
)
_SILENT = re.compile(r"no answer for|timeout expired|timed out|No route to host|Network is unreachable", re.IGNORECASE)


class DatabaseBusyError(DatabaseUnavailableError):
    """Another transaction holds a lock, or a statement took longer than its limit; other rows may be free."""


class RowRefusedError(Exception):
    """The database refuses a row: a constraint, a trigger, a value that does not fit. Never reaches a user as it is.

    Attributes:
        why: the database's own text, in one line.
        may_be_the_table: Whether it may as well be what the role may do, or what the table lacks.
    """

    def __init__(self, why: str, *, may_be_the_table: bool = False) -> None:
        super().__init__(why)
        self.why = why
        self.may_be_the_table = may_be_the_table


def sqlstate(error: BaseException) -> str:
    """Return the SQLSTATE that PostgreSQL gave, or an empty string."""
    return str(getattr(getattr(error, "orig", error), "sqlstate", None) or "")


def _is_refusal(error: BaseException) -> bool:
    """Return whether the database refuses a row that is written, and not the writing."""
    from sqlalchemy.exc import DataError, DBAPIError, IntegrityError

    if isinstance(error, IntegrityError | DataError):
        return True
    is_alive = isinstance(error, DBAPIError) and not error.connection_invalidated
    state = sqlstate(error)
    return is_alive and bool(state) and not state.startswith(_NOT_OF_A_ROW)


def _is_about_a_value(error: BaseException) -> bool:
    """Return whether a row that is read holds what cannot be read."""
    from sqlalchemy.exc import DataError, IntegrityError, InternalError, NotSupportedError, ProgrammingError

    if isinstance(error, IntegrityError | DataError):
        return True
    kinds = InternalError | NotSupportedError | ProgrammingError
    return isinstance(error, kinds) and sqlstate(error).startswith(_OF_A_VALUE)


def why_refused(error: BaseException) -> str:
    """Return the database's own text for refusing a row, in one line."""
    return _first_line(getattr(error, "orig", None) or error)


@contextlib.contextmanager
def translated(shown_url: str, *, writes: bool) -> Iterator[None]:
    """Turn what SQLAlchemy raises inside the block into an error of ours.

    Args:
        shown_url: Where the database is, without its password.
        writes: Whether the block may write rows, so that one of them can be refused.

    Raises:
        RowRefusedError: When the database refuses a row that is written.
        DatabaseUnavailableError: When the database did not answer, or is locked.
        ConfigurationError: When it cannot be used as it is.
    """
    from sqlalchemy.exc import DBAPIError
    from sqlalchemy.exc import TimeoutError as NoConnectionError

    try:
        yield
    except (DBAPIError, NoConnectionError) as error:
        if writes and _is_refusal(error):
            may_be_the_table = sqlstate(error).startswith(_KIND_REFUSED)
            raise RowRefusedError(why_refused(error), may_be_the_table=may_be_the_table) from error
        raise translate(error, shown_url) from error


@contextlib.contextmanager
def reading_rows(table: object) -> Iterator[None]:
    """Report of which table it is that a value cannot be read, also where rows are read between writes.

    Raises:
        ConfigurationError: When one cannot.
    """
    from sqlalchemy.exc import DBAPIError

    try:
        yield
    except DBAPIError as error:
        if not _is_about_a_value(error):
            raise
        raise ConfigurationError(
            f"the table {table} holds what cannot be read ({why_refused(error)}); correct that value in its row"
        ) from error


def translate(error: Exception, shown_url: str) -> AllocatorError:  # noqa: PLR0911  # a case a line
    """Return our error for what `error` means."""
    where = f"the database at {shown_url}"
    state = sqlstate(error)
    text = why_refused(error)
    lower = text.lower()
    if "sqlite" in type(getattr(error, "orig", None)).__module__:
        return _translate_sqlite(lower, text, where)
    if _is_about_a_value(error) or state.startswith(_KIND_REFUSED) or state in _NO_TABLE:
        return _about_the_table(state, text, where)
    if state in _AUTHENTICATION or "authentication failed" in lower or "no password supplied" in lower:
        return ConfigurationError(
            f"{where} refused the user or password; put them into the URL, or set ALLOCATOR_DATABASE_PASSWORD"
        )
    if state == _NO_DATABASE or ("database" in lower and "does not exist" in lower and not state):
        return ConfigurationError(f"{where} does not exist; create it, or correct --database-url")
    if state in _LOCKED:
        return DatabaseBusyError(f"{where} is busy ({text}); end the transaction that it waits for, or try again")
    if "invalid connection option" in lower or "invalid dsn" in lower or "invalid port" in lower:
        return ConfigurationError(f"{where}: {text}; correct --database-url")
    return DatabaseUnavailableError(f"{where} {_trouble(error, state, text)}")


def _trouble(error: Exception, state: str, text: str) -> str:  # noqa: PLR0911  # a case a line
    """Return what keeps a database from answering, and what to do, by the kind of trouble."""
    from sqlalchemy.exc import TimeoutError as NoConnectionError

    if isinstance(error, NoConnectionError):
        return "is slow: all connections of this process are in use; try again"
    if state == _EXHAUSTED_CODE or _EXHAUSTED.search(text):
        return f"has no connection left ({text}); end some, or raise max_connections or the limit of the role"
    if state == _READ_ONLY:
        return f"takes no changes now ({text}); wait for its failover, or give the URL and role of the primary"
    if state == _IDLE_ENDED:
        return f"ended a transaction of this process, which stood still ({text}); nothing was written, try again"
    if state == _NO_ROOM:
        return f"has no room left on its disk ({text}); make room there"
    if state == _STARTING or "the database system is" in text:
        return f"is starting or stopping ({text}); wait for it"
    if _SILENT.search(text):
        return f"is silent ({text}); look whether it, its host or the network to it is stopped"
    return f"does not answer ({text}); start it, or correct --database-url"


def _about_the_table(state: str, text: str, where: str) -> AllocatorError:
    if state == _NO_RIGHTS:
        return ConfigurationError(f"{where} does not allow this ({text}); grant the rights, or use another role")
    if state in _NO_TABLE:
        return ConfigurationError(f"{where} lacks something ({text}); run 'allocator db upgrade'")
    if state.startswith(_KIND_REFUSED):
        return ConfigurationError(
            f"{where} cannot do this with the table as it is ({text}); change the table, or name another in [database] "
            "of allocator.toml"
        )
    return ConfigurationError(f"{where} holds what cannot be read ({text}); correct that value")


def _translate_sqlite(lower: str, text: str, where: str) -> AllocatorError:  # noqa: PLR0911  # a case a line
    if "locked" in lower or "busy" in lower:
        return DatabaseUnavailableError(f"{where} is locked by another process; end that transaction and try again")
    if "disk" in lower and "full" in lower:
        return DatabaseUnavailableError(f"{where} has no room left on its disk; make room there")
    if "readonly" in lower or "read-only" in lower:
        return ConfigurationError(
            f"{where} cannot be written by this user; correct the rights of the file and its folder"
        )
    if "unable to open" in lower:
        return ConfigurationError(f"{where} cannot be opened; make its folder, or correct its rights")
    if "not a database" in lower or "malformed" in lower:
        return ConfigurationError(f"{where} is not a SQLite database; correct --database-url")
    if "no such table" in lower or "no such column" in lower:
        return ConfigurationError(f"{where} lacks something ({text}); run 'allocator db upgrade'")
    return ConfigurationError(f"{where} refused: {text}; see 'allocator db check'")


def _first_line(error: object) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return "".join(character if character.isprintable() else " " for character in text)[:200]
