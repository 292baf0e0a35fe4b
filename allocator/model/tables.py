"""What the table of workers is called in SQL, and the states that a row may have.

A name from a file passes here before it reaches a statement, where SQLAlchemy quotes it; values never become part of
a statement's text at all.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from allocator.model.errors import InvalidInputError
from allocator.model.names import shown
from allocator.model.states import LIVE_STATES, LeaseState

if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_TABLE = "plugin_runners"

COLUMNS = (
    "pool",
    "organization_id",
    "plugin_id",
    "instance",
    "host",
    "port",
    "runtime_state",
    "fence",
    "pid",
    "lease_expires_at",
    "restart_count",
    "last_error",
    "created_at",
    "updated_at",
    "stopped_at",
)
"""The columns that portlease reads and writes, by the names of the documents; a table may have others."""

STOPPED, ERROR = "stopped", "error"
LIVE_ROW_STATES = tuple(str(state) for state in LeaseState if state in LIVE_STATES)
ROW_STATES = (*LIVE_ROW_STATES, STOPPED, ERROR)
"""A row is live while its lease is; then it is `stopped`, or `error` when the worker had failed and did not recover."""

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,54}", re.ASCII)
"""At most 55 characters, so that an index named after the table stays within PostgreSQL's 63."""


@dataclass(frozen=True, slots=True)
class TableNames:
    """What a table of workers and its columns are called.

    Attributes:
        table: The table.
        schema: The schema it is in, or None for the connection's own.
        columns: The names of columns that are called otherwise than in the documents, by the documents' names.
    """

    table: str = DEFAULT_TABLE
    schema: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def checked(cls, table: str | None, schema: str | None, columns: Mapping[str, str]) -> TableNames:
        """Return these names.

        Raises:
            InvalidInputError: When one is not an identifier, a column is not known, or two have one name.
        """
        for name in filter(None, (table, schema, *columns.values())):
            if not _IDENTIFIER.fullmatch(name):
                raise InvalidInputError(
                    f"{shown(name)} is not a name for a table, schema or column; "
                    "use 1-55 letters, digits and '_', no digit first"
                )
        for known in columns:
            if known not in COLUMNS:
                raise InvalidInputError(f"{shown(known)} is not a column of portlease; use one of {', '.join(COLUMNS)}")
        names = cls(table or DEFAULT_TABLE, schema, dict(columns))
        if len({names.column(name) for name in COLUMNS}) < len(COLUMNS):
            raise InvalidInputError("two columns of [database.columns] have one name; give each its own")
        return names

    @property
    def version_table(self) -> str:
        """Where Alembic writes which migrations were run."""
        return f"{self.table}_version"

    def column(self, name: str) -> str:
        """Return what a column of the documents is called in this table."""
        return self.columns.get(name, name)

    def __str__(self) -> str:
        return f"{self.schema}.{self.table}" if self.schema else self.table
