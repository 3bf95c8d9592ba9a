"""Decides which package files a policy allows to be served. Pure."""

from __future__ import annotations

import contextlib

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from relay.policy.signatures import problem_with, public_key
from relay.policy.snapshot import PackageContent, Snapshot


def permits(snapshot: Snapshot, now_ms: int, *, require_signature: bool) -> dict[str, str]:
    """SHA-256 of every file in a policy → why it may not be served; empty if it may."""
    keys: dict[str, Ed25519PublicKey] = {}
    for name, pem in snapshot.signing_keys.items():
        with contextlib.suppress(ValueError):
            keys[name] = public_key(pem)
    reasons: dict[str, str] = {}
    contents = (c for a in snapshot.assignments for c in a.contents if isinstance(c, PackageContent))
    for package, file in ((p, f) for c in contents for p in c.packages for f in p.files):
        reason = f"package {package.key} was yanked" if package.key in snapshot.yanked else ""
        if not reason and require_signature:
            reason = problem_with(package, file, keys, now_ms)
        if reasons.get(file.sha256) != "":  # a file may be served if any package with the same bytes allows it
            reasons[file.sha256] = reason
    return reasons
