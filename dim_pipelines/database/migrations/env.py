"""What Alembic runs: migrate over the connection that `database/engine` passes in; nothing else calls this."""

from __future__ import annotations

from alembic import context

from dim_pipelines.database.tables import VERSION_TABLE, metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
