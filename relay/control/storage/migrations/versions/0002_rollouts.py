"""Rollouts with stages, the audit, and notices.

Revision ID: 0002
"""

import json
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables. Candidates in progress become stable."""
    connection = op.get_bind()
    rows = connection.execute(sa.text("SELECT name, number, stable, candidate FROM assignments")).all()
    bodies = connection.execute(sa.text("SELECT key, body FROM documents WHERE kind = 'ConfigAssignment'")).all()
    specs = {key: json.loads(body)["spec"] for key, body in bodies}
    op.drop_table("assignments")
    assignments = op.create_table(
        "assignments",
        sa.Column("name", sa.String(128), primary_key=True),
        sa.Column("body", sa.Text, nullable=False),
    )
    for name, number, stable, candidate in rows:
        newest: dict[str, Any] = json.loads(candidate or stable)
        spec = specs[name]
        newest |= {"selector": spec.get("target_selector", {}), "slot": spec.get("slot", "")}
        newest["priority"] = spec.get("priority", 0)
        body = {
            "slot": newest["slot"],
            "priority": newest["priority"],
            "number": number,
            "retry": 0,
            "stable": newest,
            "declared": newest,
        }
        body |= {"rollout": None, "pending": None, "layers": []}
        connection.execute(sa.insert(assignments).values(name=name, body=json.dumps(body)))
    op.create_table(
        "rollouts",
        sa.Column("name", sa.String(160), primary_key=True),
        sa.Column("assignment", sa.String(128), nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
    )
    op.create_index("ix_rollouts_assignment", "rollouts", ["assignment"])
    op.create_table(
        "configs",
        sa.Column("hash", sa.LargeBinary(32), primary_key=True),
        sa.Column("content_type", sa.String(64), nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.Column("published_ms", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "audit",
        sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("actor", sa.String(256), nullable=False),
        sa.Column("verified", sa.Boolean, nullable=False),
        sa.Column("action", sa.String(64), nullable=False),
        sa.Column("subject", sa.String(320), nullable=False),
        sa.Column("before", sa.String(64), nullable=False),
        sa.Column("after", sa.String(64), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("hash", sa.LargeBinary(32), nullable=False),
    )
    op.create_table(
        "notices",
        sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("channel", sa.String(128), nullable=False),
        sa.Column("title", sa.Text, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("next_ms", sa.BigInteger, nullable=False),
    )


def downgrade() -> None:
    """Not possible: the first schema cannot store the thresholds of stages."""
    raise NotImplementedError("restore a copy of the database from before the upgrade")
