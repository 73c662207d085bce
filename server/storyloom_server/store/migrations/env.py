"""What Alembic runs to migrate: on the connection, and in the transaction, of ``storyloom_server.store.schema``."""

from alembic import context

from storyloom_server.store.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
