"""What the table of workers is called in SQL, and the states that a row may have.

A name from a file passes here before it reaches a statement, where SQLAlchemy quotes it; values never become part of
a statement's text at all.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from allocator.model.errors import InvalidInputError
from allocator.model.names import shown
from allocator.model.states import LIVE_STATES, LeaseState
from allocator.model.values import Value, field

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

NEEDED_COLUMNS = ("pool", "organization_id", "plugin_id", "instance", "host", "port", "runtime_state", "fence")
"""What fencing needs: who has which port until when something newer does. A table may lack the others."""

STOPPED, ERROR = "stopped", "error"
LIVE_ROW_STATES = tuple(str(state) for state in LeaseState if state in LIVE_STATES)
ROW_STATES = (*LIVE_ROW_STATES, STOPPED, ERROR)
"""A row is live while its lease is; then it is `stopped`, or `error` when the worker had failed and did not recover."""

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,54}", re.ASCII)
"""At most 55 characters, so that an index named after the table stays within PostgreSQL's 63."""


_NAME_LENGTH = 50


class NameTable(Value):
    """Where names are found when a column of the table of workers is a foreign key.

    Attributes:
        table: The table that it refers to, in the schema of the table of workers.
        key: The column that it refers to.
        name: The column that has the name.
    """

    table: str
    key: str = "id"
    name: str = "name"

    def __str__(self) -> str:
        return f"{self.table}.{self.name}"


class TableNames(Value):
    """What a table of workers and its columns are called.

    Attributes:
        table: The table.
        schema: The schema it is in, or None for the connection's own.
        columns: The names of columns that are called otherwise than in the documents, by the documents' names.
        states: The names of states that are called otherwise, by the documents' names.
        plugin: Where plugins' names are found when `plugin_id` is a foreign key, or None.
        organization: Likewise for `organization_id`.
    """

    table: str = DEFAULT_TABLE
    schema: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    states: Mapping[str, str] = field(default_factory=dict)
    plugin: NameTable | None = None
    organization: NameTable | None = None

    @classmethod
    def checked(
        cls,
        table: str | None,
        schema: str | None,
        columns: Mapping[str, str],
        states: Mapping[str, str] | None = None,
        plugin: NameTable | None = None,
        organization: NameTable | None = None,
    ) -> TableNames:
        """Return these names.

        Raises:
            InvalidInputError: When one is not an identifier, a column or state is not known, or two have one name.
        """
        others = [name for one in (plugin, organization) if one for name in (one.table, one.key, one.name)]
        for name in filter(None, (table, schema, *columns.values(), *others)):
            if not _IDENTIFIER.fullmatch(name):
                raise InvalidInputError(
                    f"{shown(name)} is not a name for a table, schema or column; "
                    "use 1-55 letters, digits and '_', no digit first"
                )
        for known in columns:
            if known not in COLUMNS:
                raise InvalidInputError(f"{shown(known)} is not a column of portlease; use one of {', '.join(COLUMNS)}")
        names = cls(table or DEFAULT_TABLE, schema, dict(columns), dict(states or {}), plugin, organization)
        names._check_states()
        if len({names.column(name) for name in COLUMNS}) < len(COLUMNS):
            raise InvalidInputError("two columns of [database.columns] have one name; give each its own")
        return names

    @property
    def version_table(self) -> str:
        """Where Alembic writes which migrations were run."""
        return f"{self.table}_version"

    def _check_states(self) -> None:
        for state, value in self.states.items():
            if state not in ROW_STATES:
                raise InvalidInputError(f"{shown(state)} is not a state of a row; use one of {', '.join(ROW_STATES)}")
            if not value.isprintable() or not 0 < len(value) <= _NAME_LENGTH:
                raise InvalidInputError(f"{shown(value)} is not a name for a state; use 1-{_NAME_LENGTH} characters")
        ended = {self.value_of(STOPPED), self.value_of(ERROR)}
        for state in LIVE_ROW_STATES:
            if self.value_of(state) in ended:
                raise InvalidInputError(
                    f"the states {state} and stopped or error have one name in [database.states]; give each its own"
                )

    def value_of(self, state: str) -> str:
        """Return the table's name for a state."""
        return self.states.get(state, state)

    def states_of(self, value: str) -> tuple[str, ...]:
        """Return the states that a value of the table stands for; a value of its owner alone stands for itself."""
        return tuple(state for state in ROW_STATES if self.value_of(state) == value) or (
            (value,) if value not in ROW_STATES else (f"{value!r}",)
        )

    def column(self, name: str) -> str:
        """Return what a column of the documents is called in this table."""
        return self.columns.get(name, name)

    def __str__(self) -> str:
        return f"{self.schema}.{self.table}" if self.schema else self.table
