"""What the number of a model's replicas is decided from, and the decisions."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

#: Ordered by its bytes everywhere, as in the tables before.
_TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "scaled_replicas",
        sa.Column("model", _TEXT, primary_key=True),
        sa.Column("num_replicas", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "replica_measures",
        sa.Column("model", _TEXT, primary_key=True),
        sa.Column("device_kind", _TEXT, primary_key=True),
        sa.Column("cost_per_slot", sa.Double),
        sa.Column("was_full", sa.SmallInteger, nullable=False),
        sa.Column("first_chunk_s", sa.Double),
        sa.Column("used_ratio", sa.Double),
        sa.Column("start_times_s", _TEXT, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "scale_decisions",
        sa.Column("model", _TEXT, primary_key=True),
        sa.Column("number", sa.BigInteger, primary_key=True),
        sa.Column("decided_at", sa.Double, nullable=False),
        sa.Column("last_at", sa.Double, nullable=False),
        sa.Column("num_times", sa.BigInteger, nullable=False),
        sa.Column("action", _TEXT, nullable=False),
        sa.Column("num_before", sa.BigInteger, nullable=False),
        sa.Column("num_after", sa.BigInteger, nullable=False),
        sa.Column("reason", _TEXT, nullable=False),
        sa.Column("message", _TEXT, nullable=False),
        sa.Column("inputs", _TEXT, nullable=False),
        sqlite_with_rowid=False,
    )
