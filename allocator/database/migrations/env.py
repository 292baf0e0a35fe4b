"""Run by Alembic: carries out the revisions on the connection it was given, or writes them as text."""

from __future__ import annotations

from alembic import context

attributes = context.config.attributes
connection = attributes.get("connection")
options = {"version_table": attributes["version_table"], "version_table_schema": attributes["schema"]}
if connection is not None:
    context.configure(connection=connection, transaction_per_migration=False, **options)
else:
    context.configure(
        dialect_name=attributes["dialect"],
        output_buffer=attributes["output"],
        literal_binds=True,
        transactional_ddl=False,
        **options,
    )
with context.begin_transaction():
    context.run_migrations()
