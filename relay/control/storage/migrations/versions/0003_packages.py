"""Packages; assignments store whether they only observe, once that has rolled out.

Revision ID: 0003
"""

import json

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables."""
    connection = op.get_bind()
    for name, body in connection.execute(sa.text("SELECT name, body FROM assignments")).all():
        state = json.loads(body)
        if "declared" in state:  # a deleted assignment keeps only its counters
            stable = state["stable"] or {}
            state["observe_only"] = bool(stable.get("observe_only"))
            update = sa.text("UPDATE assignments SET body = :body WHERE name = :name")
            connection.execute(update, {"name": name, "body": json.dumps(state, sort_keys=True)})
    op.create_table(
        "packages",
        sa.Column("name", sa.String(128), primary_key=True),
        sa.Column("version", sa.String(64), primary_key=True),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("created_by", sa.String(256), nullable=False),
        sa.Column("yanked", sa.Text, nullable=False),
    )
    op.create_table(
        "prefetches",
        sa.Column("region", sa.String(64), primary_key=True),
        sa.Column("sha256", sa.String(64), primary_key=True),
    )
    op.create_table(
        "secrets",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("value", sa.LargeBinary, nullable=False),
    )
