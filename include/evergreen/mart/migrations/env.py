"""How Alembic runs: in the transaction that `include.evergreen.mart.migrate` opened."""

from __future__ import annotations

from alembic import context

from include.evergreen.mart.migrate import VERSION_TABLE, ours
from include.evergreen.mart.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    include_name=ours,
)
with context.begin_transaction():
    context.run_migrations()
