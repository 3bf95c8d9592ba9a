"""The tables. Change them only together with a migration in `migrations/versions`."""

from __future__ import annotations

import sqlalchemy as sa

from relay.control.storage.sealed import SealedBytes, SealedText

metadata = sa.MetaData()
EPOCH = "epoch"
"""The name of the fact that stores the current epoch."""
FIRST_EPOCH = 1


def _values(name: str, id_chars: int = 64) -> sa.Table:
    """A table of values by id, as JSON."""
    return sa.Table(
        name,
        metadata,
        sa.Column("id", sa.String(id_chars), primary_key=True),
        sa.Column("body", SealedText, nullable=False),
    )


documents = sa.Table(
    "documents",
    metadata,
    sa.Column("kind", sa.String(64), primary_key=True),
    sa.Column("key", sa.String(256), primary_key=True),
    sa.Column("body", SealedText, nullable=False),
    sa.Column("updated_ms", sa.BigInteger, nullable=False),
)
"""What people applied, as canonical JSON."""

versions = sa.Table(
    "versions",
    metadata,
    sa.Column("kind", sa.String(64), primary_key=True),
    sa.Column("key", sa.String(256), primary_key=True),
    sa.Column("generation", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("body", SealedText, nullable=False),
    sa.Column("actor", sa.String(256), nullable=False),
    sa.Column("at_ms", sa.BigInteger, nullable=False),
)
"""Every version of every document, from generation 1. The body is empty if that generation deleted it."""

contents = sa.Table(
    "contents",
    metadata,
    sa.Column("name", sa.String(320), primary_key=True),
    sa.Column("payload", SealedBytes, nullable=False),
)
"""Resources that revisions pin, by name. Old contents of region variables stay as long as a revision pins them."""

assignments = sa.Table(
    "assignments",
    metadata,
    sa.Column("name", sa.String(128), primary_key=True),
    sa.Column("body", SealedText, nullable=False),
)
"""The state of each assignment between its revisions, as JSON."""

rollouts = sa.Table(
    "rollouts",
    metadata,
    sa.Column("name", sa.String(160), primary_key=True),
    sa.Column("assignment", sa.String(128), nullable=False, index=True),
    sa.Column("created_ms", sa.BigInteger, nullable=False),
    sa.Column("body", SealedText, nullable=False),
)
"""Every rollout, as JSON. In order of creation they are the revisions of an assignment."""

configs = sa.Table(
    "configs",
    metadata,
    sa.Column("hash", sa.LargeBinary(32), primary_key=True),
    sa.Column("content_type", sa.String(64), nullable=False),
    sa.Column("body", SealedBytes, nullable=False),
    sa.Column("published_ms", sa.BigInteger, nullable=False),
)
"""The rendered contents of all published revisions, by content hash."""

audit = sa.Table(
    "audit",
    metadata,
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
    sa.Column("address", sa.String(64), nullable=False, server_default=""),
    sa.Column("credential", sa.String(64), nullable=False, server_default=""),
)
"""Who did what: each row's hash covers the row and the hash before it."""

notices = sa.Table(
    "notices",
    metadata,
    sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("channel", sa.String(128), nullable=False),
    sa.Column("title", sa.Text, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("created_ms", sa.BigInteger, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("next_ms", sa.BigInteger, nullable=False),
)
"""Unsent notifications: written in the transaction of their change, deleted once sent."""

manifests = sa.Table(
    "manifests",
    metadata,
    sa.Column("region", sa.String(64), primary_key=True),
    sa.Column("body", SealedText, nullable=False),
)
"""The last manifest published to each region: `{region, epoch, number, digest}`. The number never decreases."""

packages = sa.Table(
    "packages",
    metadata,
    sa.Column("name", sa.String(128), primary_key=True),
    sa.Column("version", sa.String(64), primary_key=True),
    sa.Column("body", SealedText, nullable=False),
    sa.Column("created_ms", sa.BigInteger, nullable=False),
    sa.Column("created_by", sa.String(256), nullable=False),
    sa.Column("yanked", SealedText, nullable=False),
)
"""Versions of packages; their bytes are in `storage.packages` under their SHA-256."""

prefetches = sa.Table(
    "prefetches",
    metadata,
    sa.Column("region", sa.String(64), primary_key=True),
    sa.Column("sha256", sa.String(64), primary_key=True),
)
"""Package files that regions fetch before an agent needs them."""

secrets = sa.Table(
    "secrets",
    metadata,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("value", SealedBytes, nullable=False),
)
"""Secrets that this control plane generated: the master of the regions' download keys."""

api_keys = _values("api_keys")
"""Agents' API keys, without the secrets, as JSON."""

tokens = _values("tokens")
"""People's tokens, without the secrets, as JSON."""

sessions = _values("sessions")
"""Sessions of people who logged in at an OpenID provider, without the secrets, as JSON."""

revocations = _values("revocations")
"""Credentials of agents that are refused, as JSON."""

join_grants = _values("join_grants")
"""Tokens by which nodes may join, without the secrets, as JSON."""

joined_nodes = _values("joined_nodes", 160)
"""Nodes that joined, by REGION/NAME, as JSON."""

facts = sa.Table(
    "facts",
    metadata,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("value", SealedText, nullable=False),
)
"""Facts about the database itself."""

nodes = sa.Table(
    "nodes",
    metadata,
    sa.Column("region", sa.String(64), primary_key=True),
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("trusted", SealedText, nullable=False),
    sa.Column("software_version", sa.String(64), nullable=False),
    sa.Column("last_seen_ms", sa.BigInteger, nullable=False),
    sa.Column("departed", sa.Boolean, nullable=False, server_default=sa.false()),
)

agents = sa.Table(
    "agents",
    metadata,
    sa.Column("instance_uid", sa.LargeBinary(16), primary_key=True),
    sa.Column("agent_id", sa.String(512), nullable=False, index=True),
    sa.Column("region", sa.String(64), nullable=False),
    sa.Column("node", sa.String(64), nullable=False),
    sa.Column("state", SealedBytes, nullable=False),
    sa.Column("forgotten", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("connected", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("healthy", sa.Boolean, nullable=True),
    sa.Column("status", sa.String(16), nullable=False, server_default=""),
    sa.Column("version", sa.String(256), nullable=False, server_default=""),
    sa.Column("host", sa.String(256), nullable=False, server_default=""),
    sa.Column("changed_ms", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("session_started_ms", sa.BigInteger, nullable=False, server_default="0"),
)
"""The latest state of every agent, as its node serialised it, and the columns that lists filter and sort by."""

effective_configs = sa.Table(
    "effective_configs",
    metadata,
    sa.Column("digest", sa.LargeBinary(32), primary_key=True),
    sa.Column("body", SealedBytes, nullable=False),
)
