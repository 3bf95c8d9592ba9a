"""Tables. Changed only together with a migration in `migrations/versions`."""

from __future__ import annotations

import sqlalchemy as sa

metadata = sa.MetaData()

documents = sa.Table(
    "documents",
    metadata,
    sa.Column("kind", sa.String(64), primary_key=True),
    sa.Column("key", sa.String(256), primary_key=True),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("updated_ms", sa.BigInteger, nullable=False),
)
"""What people applied, as canonical JSON."""

contents = sa.Table(
    "contents",
    metadata,
    sa.Column("name", sa.String(320), primary_key=True),
    sa.Column("payload", sa.LargeBinary, nullable=False),
)
"""Resources under the names that revisions pin: old contents of region variables stay while they are pinned."""

assignments = sa.Table(
    "assignments",
    metadata,
    sa.Column("name", sa.String(128), primary_key=True),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("stable", sa.Text),
    sa.Column("candidate", sa.Text),
    sa.Column("threshold", sa.BigInteger, nullable=False),
)
"""Where each assignment is between its revisions (JSON); `number` counts its rollouts."""

manifests = sa.Table(
    "manifests",
    metadata,
    sa.Column("region", sa.String(64), primary_key=True),
    sa.Column("epoch", sa.BigInteger, nullable=False),
    sa.Column("number", sa.BigInteger, nullable=False),
    sa.Column("digest", sa.LargeBinary, nullable=False),
)
"""The last manifest that was published to a region; its number never goes back."""

nodes = sa.Table(
    "nodes",
    metadata,
    sa.Column("region", sa.String(64), primary_key=True),
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("trusted", sa.Text, nullable=False),
    sa.Column("software_version", sa.String(64), nullable=False),
    sa.Column("last_seen_ms", sa.BigInteger, nullable=False),
)

agents = sa.Table(
    "agents",
    metadata,
    sa.Column("instance_uid", sa.LargeBinary(16), primary_key=True),
    sa.Column("agent_id", sa.String(512), nullable=False, index=True),
    sa.Column("region", sa.String(64), nullable=False),
    sa.Column("node", sa.String(64), nullable=False),
    sa.Column("state", sa.LargeBinary, nullable=False),
)
"""The latest state of every agent, as its node serialised it."""

effective_configs = sa.Table(
    "effective_configs",
    metadata,
    sa.Column("digest", sa.LargeBinary(32), primary_key=True),
    sa.Column("body", sa.LargeBinary, nullable=False),
)
