"""Who may connect: agents' keys, people's tokens, revocations; and with which credential a change was made.

Revision ID: 0007
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables, and add the columns."""
    for table in ("api_keys", "tokens", "revocations"):
        op.create_table(
            table,
            sa.Column("id", sa.String(64), primary_key=True),
            sa.Column("body", sa.Text, nullable=False),
        )
    for name, length in (("address", 64), ("credential", 64)):
        op.add_column("audit", sa.Column(name, sa.String(length), nullable=False, server_default=""))
