"""A digest of the yank reason: a single bad byte there would yank the package for everybody.

Revision ID: 0005
"""

import sqlalchemy as sa
from alembic import op

from relay.control.storage.sealed import seal_text

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Seal the stored values."""
    connection = op.get_bind()
    for name, version, yanked in connection.execute(sa.text("SELECT name, version, yanked FROM packages")).all():
        statement = sa.text("UPDATE packages SET yanked = :sealed WHERE name = :name AND version = :version")
        connection.execute(statement, {"sealed": seal_text(yanked), "name": name, "version": version})
