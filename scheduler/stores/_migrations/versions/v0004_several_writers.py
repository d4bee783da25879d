"""What several control planes on one database need, and PostgreSQL for tables that change fast.

PostgreSQL orders text by the rules of a language unless it is told otherwise; ours is ordered by
its bytes, as in SQLite and in Python. A row that is rewritten stays in its place if the page has
room, and old versions of it are removed while they are few.
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

#: Percent of a page that new rows fill.
_FILL = {"tasks": 70, "flows": 50, "bands": 25, "tenants": 50, "batches": 10}


def upgrade() -> None:
    op.create_table(
        "batches",
        sa.Column("id", sa.SmallInteger, primary_key=True, autoincrement=False),
        sa.Column("num_committed", sa.BigInteger, nullable=False),
    )
    op.execute("INSERT INTO batches VALUES (1, 0)")
    if op.get_bind().dialect.name == "postgresql":
        _order_by_bytes()
        for table, percent in _FILL.items():
            op.execute(
                f"ALTER TABLE {table} SET (fillfactor = {percent},"
                " autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0)"
            )


def _order_by_bytes() -> None:
    found = op.get_bind().exec_driver_sql(
        "SELECT table_name, column_name FROM information_schema.columns"
        " WHERE table_schema = current_schema() AND data_type = 'text'"
    )
    columns: dict[str, list[str]] = {}
    for table, column in found:
        columns.setdefault(table, []).append(column)
    for table, names in columns.items():
        changes = ", ".join(f'ALTER {name} TYPE text COLLATE "C"' for name in names)
        op.execute(f"ALTER TABLE {table} {changes}")
