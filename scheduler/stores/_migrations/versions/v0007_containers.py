"""Containers that were ordered from providers, and what was noted of providers."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0007"
down_revision = "0006"

#: Ordered by its bytes, as all text is.
_TEXT = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "container_orders",
        sa.Column("provider", _TEXT, primary_key=True),
        sa.Column("ordinal", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("generation", sa.Integer, nullable=False),
        sa.Column("state", _TEXT, nullable=False),
        sa.Column("container_id", _TEXT),
        sa.Column("incarnation", _TEXT, nullable=False),
        sa.Column("node_class", _TEXT, nullable=False),
        sa.Column("ordered_at", sa.Double, nullable=False),
        sa.Column("up_at", sa.Double),
        sa.Column("leaving_at", sa.Double),
        sa.Column("stalled_at", sa.Double),
        sa.Column("reason", _TEXT, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "provider_ledger",
        sa.Column("provider", _TEXT, primary_key=True),
        sa.Column("node_class", _TEXT, primary_key=True),
        sa.Column("losses", sa.Double, nullable=False),
        sa.Column("stalls", sa.Double, nullable=False),
        sa.Column("slow_starts", sa.Double, nullable=False),
        sa.Column("hours", sa.Double, nullable=False),
        sa.Column("noted_at", sa.Double, nullable=False),
        sqlite_with_rowid=False,
    )
