"""Columns that lists of agents filter and sort by. They are copied from the state when the agents are loaded.

Revision ID: 0006
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns."""
    for column in (
        sa.Column("connected", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("healthy", sa.Boolean, nullable=True),
        sa.Column("status", sa.String(16), nullable=False, server_default=""),
        sa.Column("version", sa.String(256), nullable=False, server_default=""),
        sa.Column("host", sa.String(256), nullable=False, server_default=""),
        sa.Column("changed_ms", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("session_started_ms", sa.BigInteger, nullable=False, server_default="0"),
    ):
        op.add_column("agents", column)
