"""Alembic runs this for every command; the connection is ours, and so is its beginning and end."""

from alembic import context

context.configure(
    connection=context.config.attributes["connection"],
    transaction_per_migration=True,
    # SQLite can, although Alembic leaves it alone by default.
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
