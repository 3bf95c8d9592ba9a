"""Nodes that said goodbye, agents that their node has forgotten, and what the database says of itself.

Revision ID: 0004
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add what is new."""
    op.add_column("nodes", sa.Column("departed", sa.Boolean, nullable=False, server_default=sa.false()))
    op.add_column("agents", sa.Column("forgotten", sa.Boolean, nullable=False, server_default=sa.false()))
    op.create_table(
        "facts",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("value", sa.Text, nullable=False),
    )
