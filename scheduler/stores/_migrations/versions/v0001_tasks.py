"""Tasks, their output and attempts, and the counters of the fair queue."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_HEAD = sa.text("deadline_at IS NULL")


def upgrade() -> None:
    op.create_table(
        "tasks",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("priority", sa.BigInteger, nullable=False),
        sa.Column("idempotency_key", sa.Text),
        sa.Column("deadline_at", sa.Double),
        sa.Column("estimated_cost", sa.BigInteger, nullable=False),
        sa.Column("prompt_cost", sa.BigInteger, nullable=False),
        sa.Column("cost_per_token", sa.BigInteger, nullable=False),
        sa.Column("charged_cost", sa.BigInteger, nullable=False),
        sa.Column("settled_cost", sa.BigInteger, nullable=False),
        sa.Column("charged_virtual_time", sa.BigInteger, nullable=False),
        sa.Column("attempt", sa.BigInteger, nullable=False),
        sa.Column("fence", sa.BigInteger, nullable=False),
        sa.Column("runner", sa.Text),
        sa.Column("replica", sa.Text),
        sa.Column("lease_expires_at", sa.Double),
        sa.Column("num_chunks", sa.BigInteger, nullable=False),
        sa.Column("num_tokens", sa.BigInteger, nullable=False),
        sa.Column("accepted_at", sa.Double, nullable=False),
        sa.Column("first_claimed_at", sa.Double),
        sa.Column("first_chunk_at", sa.Double),
        sa.Column("finished_at", sa.Double),
        sa.Column("result", sa.Text),
        sa.Column("error", sa.Text),
    )
    leased = sa.text("state = 'leased'")
    for name, columns, where in (
        ("tasks_lease", ["lease_expires_at"], leased),
        ("tasks_runner", ["runner"], leased),
    ):
        op.create_index(name, "tasks", columns, sqlite_where=where, postgresql_where=where)
    has_key = sa.text("idempotency_key IS NOT NULL")
    op.create_index(
        "tasks_idempotency",
        "tasks",
        ["tenant", "idempotency_key"],
        unique=True,
        sqlite_where=has_key,
        postgresql_where=has_key,
    )
    op.create_index("tasks_tenant", "tasks", ["tenant", "id"])
    # Apart from tasks: a task's row is rewritten with every chunk, and a prompt can be long.
    op.create_table(
        "documents",
        sa.Column("task_id", sa.Text, primary_key=True),
        sa.Column("document", sa.Text, nullable=False),
    )
    op.create_table(
        "journal",
        sa.Column("task_id", sa.Text, primary_key=True),
        sa.Column("seq", sa.BigInteger, primary_key=True),
        sa.Column("token_ids", sa.Text, nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "attempts",
        sa.Column("task_id", sa.Text, primary_key=True),
        sa.Column("number", sa.BigInteger, primary_key=True),
        sa.Column("fence", sa.BigInteger, nullable=False),
        sa.Column("runner", sa.Text, nullable=False),
        sa.Column("replica", sa.Text, nullable=False),
        sa.Column("started_at", sa.Double, nullable=False),
        sa.Column("num_tokens_before", sa.BigInteger, nullable=False),
        sa.Column("ended_at", sa.Double),
        sa.Column("outcome", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "flows",
        sa.Column("model", sa.Text, primary_key=True),
        sa.Column("tenant", sa.Text, primary_key=True),
        sa.Column("virtual_time", sa.BigInteger, nullable=False),
        sa.Column("num_queued", sa.BigInteger, nullable=False),
        sa.Column("charged_cost", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "pools",
        sa.Column("model", sa.Text, primary_key=True),
        sa.Column("virtual_floor", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "weights",
        sa.Column("tenant", sa.Text, primary_key=True),
        sa.Column("weight_permille", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "desired_replicas",
        sa.Column("model", sa.Text, primary_key=True),
        sa.Column("num_replicas", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
