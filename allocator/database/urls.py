"""Database URLs: the forms that people write, what SQLAlchemy is given, and the same without its password."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from allocator.model.errors import ConfigurationError
from allocator.model.names import shown

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from sqlalchemy import URL

DEFAULT_FILE = "plugin_runners.sqlite3"
FORMS = "postgresql://[user[:password]@]host[:port]/database or sqlite:////path/to/file"
_USERINFO = re.compile(r"^([^:/@?#]*:)(//[^:/@?#]*(?::|(?=@)))?(.*)@", re.DOTALL)
"""The scheme, the user where one can be recognised, and all before the last '@', which may be a password."""
_DRIVERS = {
    "postgresql": "postgresql+psycopg",
    "postgres": "postgresql+psycopg",
    "postgresql+psycopg": "postgresql+psycopg",
    "sqlite": "sqlite",
    "sqlite+pysqlite": "sqlite",
}

_SQLITE_OPTIONS = frozenset({"uri", "mode", "cache", "vfs", "nolock", "immutable"})


def default_url(state_dir: Path) -> URL:
    """Return the URL of the database that serves when none is configured: SQLite beside the embedded server."""
    from sqlalchemy import URL

    return URL.create("sqlite", database=str(state_dir / DEFAULT_FILE))


def parse_database_url(text: str, *, password: str | None = None) -> URL:
    """Return a URL that SQLAlchemy takes.

    Args:
        text: `postgresql://…`, `postgres://…` or `sqlite:///…`.
        password: The password when the URL has none.

    Raises:
        ConfigurationError: When it has another form; the error does not repeat it.
    """
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    scheme = text.partition(":")[0].lower()
    if scheme not in _DRIVERS:
        raise ConfigurationError(f"{shown(scheme[:20])} is not a database that portlease knows; write {FORMS}")
    if not text.isprintable():
        raise ConfigurationError(f"the database URL {redacted(text)} has a control character; correct it")
    try:
        url = make_url(text)
        url = url.set(drivername=_DRIVERS[scheme])
    except (ArgumentError, ValueError):
        raise ConfigurationError(f"the database URL {redacted(text)} cannot be read; write {FORMS}") from None
    if url.get_backend_name() == "sqlite":
        if not url.database:
            raise ConfigurationError("the database URL names no SQLite file; write sqlite:////path/to/file")
        return _checked_options(url, _SQLITE_OPTIONS)
    if "@" in (url.host or ""):
        raise ConfigurationError(f"the database URL {redacted(text)} has an '@' in its password; write it as %40")
    from psycopg.pq import Conninfo

    known = {option.keyword.decode() for option in Conninfo.get_defaults()}
    url = _checked_options(url.difference_update_query(["prepare_threshold"]), known)
    if password and not url.password and "password" not in url.query:
        url = url.set(password=password)
    return url


def _checked_options(url: URL, known: Collection[str]) -> URL:
    unknown = next((name for name in url.query if name not in known), None)
    if unknown is not None:
        raise ConfigurationError(
            f"the database URL has an option {shown(unknown[:40])} that its driver does not know; correct it"
        )
    return url


def shown_url(url: URL) -> str:
    """Return a URL as it may be shown: without any password, and without the driver's name."""
    return redacted(url.set(drivername=url.get_backend_name()).render_as_string(hide_password=True))


def redacted(text: str) -> str:
    """Return a URL as it may be shown: without its password, on one line."""
    hidden = _USERINFO.sub(lambda found: f"{found[1]}{found[2] or ''}{'***' if found[3] else ''}@", text)
    hidden = re.sub(r"(?i)((?:^|[?&])[^=&]*pass[^=&]*=)[^&]*", r"\1***", hidden)
    return "".join(character if character.isprintable() else "?" for character in hidden)[:200]
