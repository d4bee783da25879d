"""What several control planes know of the nodes: who is there, what each is to run, and who of them
decides. A key may run out, as those of runners may."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0008"
down_revision = "0007"

#: Ordered by its bytes, as all text is.
_TEXT = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "nodes",
        sa.Column("runner_id", _TEXT, primary_key=True),
        sa.Column("fence", sa.BigInteger, nullable=False),
        sa.Column("control_plane", _TEXT, nullable=False),
        sa.Column("is_connected", sa.SmallInteger, nullable=False),
        sa.Column("connected_at", sa.Double, nullable=False),
        sa.Column("heard_at", sa.Double, nullable=False),
        sa.Column("node", _TEXT, nullable=False),
        sa.Column("host", _TEXT, nullable=False),
        sa.Column("provider", _TEXT, nullable=False),
        sa.Column("container", _TEXT, nullable=False),
        sa.Column("version", _TEXT, nullable=False),
        sa.Column("num_devices", sa.BigInteger, nullable=False),
        sa.Column("device_kind", _TEXT, nullable=False),
        sa.Column("models", _TEXT, nullable=False),
        sa.Column("replicas", _TEXT, nullable=False),
        sa.Column("state", _TEXT, nullable=False),
        sa.Column("holdings", _TEXT, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "placements",
        sa.Column("runner_id", _TEXT, primary_key=True),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("replicas", _TEXT, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "leaders",
        sa.Column("role", _TEXT, primary_key=True),
        sa.Column("holder", _TEXT, nullable=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("num_beats", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    op.add_column("tenant_keys", sa.Column("expires_at", sa.Double))
