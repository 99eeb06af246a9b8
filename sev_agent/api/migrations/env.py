"""What Alembic runs for each command: the migrations, on the connection that it is given."""

from alembic import context

from sev_agent.api.tables import Table

# Alembic fills its module while it runs this file; whoever merely imports it finds nothing there.
if hasattr(context, "config"):
    context.configure(connection=context.config.attributes["connection"], target_metadata=Table.metadata)
    with context.begin_transaction():
        context.run_migrations()
