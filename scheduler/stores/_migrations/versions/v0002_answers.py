"""Several answers to one prompt, log probabilities, and what a lost attempt is worth.

What is there already has one answer without log probabilities, and goes on from its tokens.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("tasks", sa.Column("resume", sa.Text, nullable=False, server_default="close"))
    op.add_column("journal", sa.Column("answer", sa.BigInteger, nullable=False, server_default="0"))
    op.add_column("journal", sa.Column("logprobs", sa.Text))
