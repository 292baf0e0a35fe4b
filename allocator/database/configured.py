"""The database that the settings name: for the commands, and for a recorder of the library."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from allocator.database.connection import Database
from allocator.database.upgrade import upgrade
from allocator.database.urls import DEFAULT_FILE
from allocator.model.owned import private_file

if TYPE_CHECKING:
    from collections.abc import Callable

    from allocator.model.settings import Settings


def open_database(settings: Settings, *, make: bool, on_made: Callable[[str], None] | None = None) -> Database:
    """Return the database that the settings name, or the SQLite file that serves where they name none.

    Args:
        settings: The settings.
        make: Whether that file is made, with its table, when it does not exist.
        on_made: Called with the place of a file that was made.

    Raises:
        ConfigurationError: When the URL cannot be read, or SQLAlchemy is not installed.
    """
    if settings.database_url:
        return Database.open(settings.database_url, timeout_s=settings.timeout_s, password=settings.database_password)
    database = Database.beside(settings.state_dir, timeout_s=settings.timeout_s)
    if make and not database.exists():
        os.close(private_file(settings.state_dir / DEFAULT_FILE))
        upgrade(database, settings.table, settings.pool)
        if on_made is not None:
            on_made(database.shown_url)
    return database
