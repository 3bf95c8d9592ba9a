"""Runs migrations on the connection that `database.Database` passes; there is no offline mode."""

from alembic import context

from relay.control.storage.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
