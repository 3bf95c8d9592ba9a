"""Nodes that said goodbye, agents that their node has forgotten, and what the database says of itself.

Revision ID: 0004
"""

import sqlalchemy as sa
from alembic import op

from relay.control.storage.sealed import seal_bytes, seal_text

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_SEALED = (
    ("documents", "body", ("kind", "key")),
    ("assignments", "body", ("name",)),
    ("rollouts", "body", ("name",)),
    ("packages", "body", ("name", "version")),
    ("contents", "payload", ("name",)),
    ("agents", "state", ("instance_uid",)),
)
"""Columns whose values carry a digest from here on."""


def upgrade() -> None:
    """Add what is new."""
    op.add_column("nodes", sa.Column("departed", sa.Boolean, nullable=False, server_default=sa.false()))
    op.add_column("agents", sa.Column("forgotten", sa.Boolean, nullable=False, server_default=sa.false()))
    op.create_table(
        "facts",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("value", sa.Text, nullable=False),
    )
    connection = op.get_bind()
    for table, column, keys in _SEALED:
        names = ", ".join(keys)
        rows = connection.execute(sa.text(f"SELECT {names}, {column} FROM {table}")).all()  # noqa: S608
        for *key, value in rows:
            where = " AND ".join(f"{name} = :{name}" for name in keys)
            sealed = seal_text(value) if isinstance(value, str) else seal_bytes(bytes(value))
            statement = sa.text(f"UPDATE {table} SET {column} = :sealed WHERE {where}")  # noqa: S608
            connection.execute(statement, {"sealed": sealed, **dict(zip(keys, key, strict=True))})
