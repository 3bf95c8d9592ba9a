"""Keys of the deployment guide that are known by name and cannot be honoured yet, with the reason.

A key that is silently ignored is worse than one that is refused: whoever wrote it believes in it.
"""

from __future__ import annotations

REFUSED: dict[str, str] = {
    "server.tls.client_ca_file": "this version does not check client certificates; remove it",
    "server.caching": "configs are kept while they are current, and states are pushed; there is no time to live",
    "database": "this version keeps everything in SQLite below data_dir; PostgreSQL is not supported yet",
    "storage.config": "configs are rendered from templates and kept in the database; there is no object store for them",
    "telemetry.traces": "traces are not exported by this version",
    "extensions": "belongs in the agents' configuration, not in the server's",
    "certificate_rotation": "certificates are not issued by this version",
}
"""Dotted path (and all below it) → why it is refused."""

AUTH_REASON = "this version cannot authenticate agents; only `none` is supported"
