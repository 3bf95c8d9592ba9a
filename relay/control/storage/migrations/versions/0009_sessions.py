"""Sessions of people who logged in at an OpenID provider.

Revision ID: 0009
"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "sessions", sa.Column("id", sa.String(64), primary_key=True), sa.Column("body", sa.Text, nullable=False)
    )
