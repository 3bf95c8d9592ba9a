"""Nodes that joined, and the tokens by which they may.

Revision ID: 0008
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables."""
    for table, length in (("join_grants", 64), ("joined_nodes", 160)):
        op.create_table(
            table,
            sa.Column("id", sa.String(length), primary_key=True),
            sa.Column("body", sa.Text, nullable=False),
        )
