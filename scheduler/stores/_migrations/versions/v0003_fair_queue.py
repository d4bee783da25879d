"""Priority classes, quotas, keys, bulks, pauses and dead letters.

Flows get a class and are made anew from the tasks there are: what was charged and queued is counted
from them, virtual times begin at zero, and leases that ran count as begun at their task's claim.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.types import TypeEngine

revision = "0003"
down_revision = "0002"


def _zero(name: str, kind: TypeEngine[Any]) -> sa.Column[Any]:
    return sa.Column(name, kind, nullable=False, server_default="0")


def upgrade() -> None:
    _tasks()
    _flows()
    _tenants()
    _bulks()


def _tasks() -> None:
    for column in (
        sa.Column("priority_class", sa.Text, nullable=False, server_default="standard"),
        _zero("num_moves", sa.BigInteger()),
        _zero("num_lost", sa.BigInteger()),
        sa.Column("leased_at", sa.Double),
        _zero("num_tokens_before", sa.BigInteger()),
        sa.Column("not_before", sa.Double),
        _zero("is_dead", sa.SmallInteger()),
        _zero("queued_at", sa.Double()),
        _zero("charged_class_time", sa.BigInteger()),
        sa.Column("cost_factor_permille", sa.BigInteger, nullable=False, server_default="1000"),
        sa.Column("bulk_id", sa.Text),
        sa.Column("bulk_index", sa.BigInteger),
    ):
        op.add_column("tasks", column)
    op.execute("UPDATE tasks SET queued_at = accepted_at")
    op.execute("UPDATE tasks SET num_lost = attempt - 1 WHERE attempt > 1")
    op.execute("UPDATE tasks SET leased_at = first_claimed_at WHERE state = 'leased'")
    # The running attempt is its task's from now on.
    op.execute("DELETE FROM attempts WHERE outcome = 'running'")
    if op.get_bind().dialect.name == "sqlite":
        op.execute("DROP INDEX IF EXISTS tasks_head")
        op.execute("DROP INDEX IF EXISTS tasks_deadline")
    # Leases are as many as replicas can work on at once: to look at all of them is no work, and an
    # index less is less work for every claim.
    op.drop_index("tasks_runner", "tasks")
    order: list[str | sa.TextClause] = [
        sa.text("priority DESC"),
        sa.text("(deadline_at IS NULL)"),
        "deadline_at",
        "id",
    ]
    indexes: list[tuple[str, list[str | sa.TextClause], str]] = [
        # Tasks without a deadline come behind those with one.
        ("tasks_head", ["model", "priority_class", "tenant", *order], "state = 'queued'"),
        ("tasks_due", ["not_before"], "state = 'delayed'"),
        ("tasks_deadline", ["deadline_at"], "deadline_at IS NOT NULL AND finished_at IS NULL"),
        ("tasks_finished", ["finished_at"], "finished_at IS NOT NULL"),
        ("tasks_dead", ["id"], "is_dead = 1"),
        ("tasks_bulk", ["bulk_id", "bulk_index"], "bulk_id IS NOT NULL"),
        ("tasks_bulk_state", ["bulk_id", "state"], "bulk_id IS NOT NULL"),
    ]
    for name, columns, condition in indexes:
        where = sa.text(condition)
        op.create_index(name, "tasks", columns, sqlite_where=where, postgresql_where=where)


def _flows() -> None:
    op.drop_table("flows")
    op.create_table(
        "flows",
        sa.Column("model", sa.Text, primary_key=True),
        sa.Column("priority_class", sa.Text, primary_key=True),
        sa.Column("tenant", sa.Text, primary_key=True),
        sa.Column("virtual_time", sa.BigInteger, nullable=False),
        sa.Column("deficit", sa.BigInteger, nullable=False),
        sa.Column(
            "num_queued", sa.BigInteger, sa.CheckConstraint("num_queued >= 0"), nullable=False
        ),
        sa.Column("queued_cost", sa.BigInteger, nullable=False),
        sa.Column(
            "num_leased", sa.BigInteger, sa.CheckConstraint("num_leased >= 0"), nullable=False
        ),
        sa.Column("charged_cost", sa.BigInteger, nullable=False),
        sa.Column("is_held", sa.SmallInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    active = sa.text("num_queued > 0 AND is_held = 0")
    op.create_index(
        "flows_next",
        "flows",
        ["model", "priority_class", "virtual_time", "tenant"],
        sqlite_where=active,
        postgresql_where=active,
    )
    op.create_index("flows_tenant", "flows", ["tenant"])
    op.create_table(
        "bands",
        sa.Column("model", sa.Text, primary_key=True),
        sa.Column("priority_class", sa.Text, primary_key=True),
        sa.Column("virtual_time", sa.BigInteger, nullable=False),
        sa.Column(
            "num_active", sa.BigInteger, sa.CheckConstraint("num_active >= 0"), nullable=False
        ),
        sa.Column("virtual_floor", sa.BigInteger, nullable=False),
        sa.Column("policy", sa.Text, nullable=False),
        sa.Column("lifted_to", sa.BigInteger),
        sqlite_with_rowid=False,
    )
    op.execute("DELETE FROM pools")
    op.execute(
        "INSERT INTO flows SELECT model, priority_class, tenant, 0, 0,"
        " SUM(CASE WHEN state = 'queued' THEN 1 ELSE 0 END),"
        " SUM(CASE WHEN state = 'queued' AND estimated_cost > settled_cost"
        "  THEN estimated_cost - settled_cost ELSE 0 END),"
        " SUM(CASE WHEN state = 'leased' THEN 1 ELSE 0 END), SUM(charged_cost), 0"
        " FROM tasks GROUP BY model, priority_class, tenant"
    )
    op.execute("UPDATE tasks SET charged_virtual_time = 0")
    op.execute(
        "INSERT INTO bands SELECT model, priority_class, 0,"
        " SUM(CASE WHEN num_queued > 0 THEN 1 ELSE 0 END), 0, '', NULL"
        " FROM flows GROUP BY model, priority_class"
    )
    op.create_table(
        "classes",
        sa.Column("priority_class", sa.Text, primary_key=True),
        sa.Column("weight_permille", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "cost_factors",
        sa.Column("model", sa.Text, primary_key=True),
        sa.Column("device_kind", sa.Text, primary_key=True),
        sa.Column("factor_permille", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )


def _tenants() -> None:
    op.create_table(
        "tenants",
        sa.Column("tenant", sa.Text, primary_key=True),
        sa.Column("weight_permille", sa.BigInteger, nullable=False),
        sa.Column("max_queued", sa.BigInteger),
        sa.Column("max_in_flight", sa.BigInteger),
        sa.Column("cost_per_minute", sa.BigInteger),
        sa.Column("classes", sa.Text),
        sa.Column("allowance", sa.Double, nullable=False),
        sa.Column("allowance_at", sa.Double, nullable=False),
        sqlite_with_rowid=False,
    )
    op.execute(
        "INSERT INTO tenants SELECT tenant, weight_permille, NULL, NULL, NULL, NULL, 0, 0"
        " FROM weights"
    )
    op.drop_table("weights")
    op.create_table(
        "tenant_keys",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("role", sa.Text, nullable=False),
        sa.Column("secret_hash", sa.Text, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("revoked_at", sa.Double),
    )


def _bulks() -> None:
    op.create_table(
        "bulks",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("priority_class", sa.Text, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("idempotency_key", sa.Text),
        sa.Column("num_inputs", sa.BigInteger, nullable=False),
        sa.Column("closed_at", sa.Double),
        sa.Column("cancelled_at", sa.Double),
    )
    op.create_index("bulks_tenant", "bulks", ["tenant", "id"])
    has_key = sa.text("idempotency_key IS NOT NULL")
    op.create_index(
        "bulks_idempotency",
        "bulks",
        ["tenant", "idempotency_key"],
        unique=True,
        sqlite_where=has_key,
        postgresql_where=has_key,
    )
