"""Digests of stored values, versions of documents, departed nodes, agents that their node has forgotten.

Revision ID: 0004
"""

import json

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
    ("nodes", "trusted", ("region", "name")),
    ("configs", "body", ("hash",)),
    ("effective_configs", "body", ("digest",)),
    ("secrets", "value", ("name",)),
)
"""Columns whose values carry a digest from this revision on."""


def upgrade() -> None:
    """Add the columns and tables, and seal the stored values."""
    op.add_column("nodes", sa.Column("departed", sa.Boolean, nullable=False, server_default=sa.false()))
    op.add_column("agents", sa.Column("forgotten", sa.Boolean, nullable=False, server_default=sa.false()))
    op.create_table(
        "facts",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("value", sa.Text, nullable=False),
    )
    op.create_table(
        "versions",
        sa.Column("kind", sa.String(64), primary_key=True),
        sa.Column("key", sa.String(256), primary_key=True),
        sa.Column("generation", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("actor", sa.String(256), nullable=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
    )
    connection = op.get_bind()
    manifests = connection.execute(sa.text("SELECT region, epoch, number, digest FROM manifests")).all()
    op.drop_table("manifests")
    published = op.create_table(
        "manifests", sa.Column("region", sa.String(64), primary_key=True), sa.Column("body", sa.Text, nullable=False)
    )
    for region, epoch, number, digest in manifests:
        body = json.dumps({"region": region, "epoch": epoch, "number": number, "digest": bytes(digest).hex()})
        connection.execute(sa.insert(published), {"region": region, "body": seal_text(body)})
    for table, column, keys in _SEALED:
        names = ", ".join(keys)
        rows = connection.execute(sa.text(f"SELECT {names}, {column} FROM {table}")).all()  # noqa: S608
        for *key, value in rows:
            where = " AND ".join(f"{name} = :{name}" for name in keys)
            sealed = seal_text(value) if isinstance(value, str) else seal_bytes(bytes(value))
            statement = sa.text(f"UPDATE {table} SET {column} = :sealed WHERE {where}")  # noqa: S608
            connection.execute(statement, {"sealed": sealed, **dict(zip(keys, key, strict=True))})
    first = "INSERT INTO versions SELECT kind, key, 1, body, '', updated_ms FROM documents"
    connection.execute(sa.text(first))
