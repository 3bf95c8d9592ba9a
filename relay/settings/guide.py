"""Keys of the deployment guide that this version does not support, with the reason.

Refusing a key is better than silently ignoring it: whoever wrote it relies on it.
"""

from __future__ import annotations

REFUSED: dict[str, str] = {
    "server.caching": "configs are cached while they are current and states are pushed, so there is no TTL to set",
    "database": "this version keeps everything in SQLite below data_dir; PostgreSQL is not supported yet",
    "storage.config": "configs are rendered from templates and kept in the database; there is no object store for them",
    "telemetry.traces": "traces are not exported by this version",
    "extensions": "belongs in the agents' configuration, not in the server's",
    "auth.api_key.redis": "API keys are kept by the control plane and sent to nodes as policy; remove it",
    "certificate_rotation": "certificates are not issued by this version",
}
"""Dotted path → why it, with everything below it, is refused."""
