"""Tables as an application made them: uuid keys, foreign keys, camelCase, words of its own for states."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from allocator.model.tables import NameTable, TableNames

if TYPE_CHECKING:
    from allocator.database.connection import Database
    from allocator.model.names import WorkerId

NAMES = TableNames.checked(
    "plugin_instances",
    None,
    {"organization_id": "organizationId", "plugin_id": "pluginId", "runtime_state": "runtimeState",
     "port": "workerPort", "created_at": "createdAt", "updated_at": "updatedAt"},
    {"starting": "STARTING", "ready": "RUNNING", "degraded": "RUNNING", "draining": "RUNNING", "stopped": "STOPPED",
     "error": "FAILED"},
    NameTable("plugins", "id", "packageName"),
    NameTable("organizations", "id", "slug"),
)  # fmt: skip
TOML = """
database_url = "{url}"

[database]
table = "plugin_instances"

[database.columns]
organization_id = "organizationId"
plugin_id = "pluginId"
runtime_state = "runtimeState"
port = "workerPort"
created_at = "createdAt"
updated_at = "updatedAt"

[database.states]
starting = "STARTING"
ready = "RUNNING"
degraded = "RUNNING"
draining = "RUNNING"
stopped = "STOPPED"
error = "FAILED"

[database.plugin]
table = "plugins"
name = "packageName"

[database.organization]
table = "organizations"
name = "slug"
"""
"""The same names in `allocator.toml`."""


def execute(database: Database, *statements_: str) -> None:
    with database.writing() as connection:
        for statement in statements_:
            connection.exec_driver_sql(statement)


def rows_of(database: Database, query: str) -> list[dict[str, Any]]:
    with database.reading() as connection:
        return [dict(row) for row in connection.execute(sa.text(query)).mappings()]


def make_tables(database: Database) -> None:
    key = "TEXT" if database.is_sqlite else "uuid"
    made = "" if database.is_sqlite else " DEFAULT gen_random_uuid()"
    own = f"id {key} PRIMARY KEY{made}" if not database.is_sqlite else "id INTEGER PRIMARY KEY"
    execute(
        database,
        f'CREATE TABLE plugins (id {key} PRIMARY KEY, "packageName" varchar(214) NOT NULL UNIQUE)',
        f"CREATE TABLE organizations (id {key} PRIMARY KEY, slug varchar(60) NOT NULL)",
        f'CREATE TABLE plugin_instances ({own}, "organizationId" {key} NOT NULL REFERENCES organizations, '
        f'"pluginId" {key} NOT NULL REFERENCES plugins, "workerPort" integer, "runtimeState" varchar(50) NOT NULL '
        "DEFAULT 'STOPPED', note text, \"createdAt\" timestamp NOT NULL DEFAULT CURRENT_TIMESTAMP)",
    )


def add_name(database: Database, table: str, column: str, name: str) -> str:
    found = str(uuid.uuid5(uuid.NAMESPACE_DNS, f"{table}/{name}"))
    execute(database, f"INSERT INTO {table} (id, \"{column}\") VALUES ('{found}', '{name}')")
    return found


def of(worker: WorkerId) -> tuple[str, str]:
    orgs, plugins = (
        (uuid.NAMESPACE_DNS, f"{table}/{name}")
        for table, name in (("organizations", worker.org), ("plugins", worker.plugin))
    )
    return str(uuid.uuid5(*orgs)), str(uuid.uuid5(*plugins))
