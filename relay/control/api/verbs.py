"""What each route of the admin API does, for the roles. A route that is not listed here is refused to everybody."""

from __future__ import annotations

from collections.abc import Mapping

from relay.control.access.roles import Verb

_API = "/api/v1"

ANYBODY = frozenset({("GET", f"{_API}/auth/config"), ("POST", f"{_API}/auth/login")})
"""Routes that need no credential."""

OWN = frozenset({("GET", f"{_API}/auth/whoami"), ("GET", f"{_API}/auth/can-i"), ("POST", f"{_API}/auth/logout")})
"""Routes about the caller: they need a credential, but no role."""

VERBS: Mapping[tuple[str, str], Verb] = {
    ("POST", f"{_API}/apply"): Verb.WRITE,
    ("POST", f"{_API}/diff"): Verb.READ,
    ("GET", f"{_API}/documents/{{plural}}"): Verb.READ,
    ("GET", f"{_API}/documents/{{plural}}/{{name}}"): Verb.READ,
    ("GET", f"{_API}/documents/{{plural}}/{{name}}/versions"): Verb.READ,
    ("GET", f"{_API}/documents/{{plural}}/{{name}}/versions/{{generation}}"): Verb.READ,
    ("GET", f"{_API}/documents/{{plural}}/{{name}}/orphans"): Verb.READ,
    ("DELETE", f"{_API}/documents/{{plural}}/{{name}}"): Verb.WRITE,
    ("GET", f"{_API}/regions"): Verb.READ,
    ("GET", f"{_API}/nodes"): Verb.READ,
    ("DELETE", f"{_API}/nodes/{{region}}/{{name}}"): Verb.OPERATE,
    ("GET", f"{_API}/agents"): Verb.READ,
    ("GET", f"{_API}/agents/{{agent_id}}"): Verb.READ,
    ("GET", f"{_API}/agents/{{agent_id}}/explain"): Verb.READ,
    ("GET", f"{_API}/agents/{{agent_id}}/config"): Verb.READ,
    ("GET", f"{_API}/drift"): Verb.READ,
    ("GET", f"{_API}/configs/{{config_hash}}"): Verb.READ,
    ("GET", f"{_API}/rollouts"): Verb.READ,
    ("GET", f"{_API}/rollouts/{{name}}"): Verb.READ,
    ("GET", f"{_API}/rollouts/{{name}}/diff"): Verb.READ,
    ("POST", f"{_API}/rollouts/{{name}}/approve"): Verb.APPROVE,
    ("POST", f"{_API}/rollouts/{{name}}/retry"): Verb.OPERATE,
    ("POST", f"{_API}/rollouts/{{name}}/{{action}}"): Verb.OPERATE,
    ("GET", f"{_API}/assignments"): Verb.READ,
    ("GET", f"{_API}/assignments/{{name}}/history"): Verb.READ,
    ("POST", f"{_API}/assignments/{{name}}/undo"): Verb.WRITE,
    ("GET", f"{_API}/audit"): Verb.READ,
    ("GET", f"{_API}/audit/verify"): Verb.READ,
    ("GET", f"{_API}/audit/{{number}}"): Verb.READ,
    ("POST", f"{_API}/epoch"): Verb.ADMIN,
    ("GET", f"{_API}/uploads/{{sha256}}"): Verb.WRITE,
    ("PATCH", f"{_API}/uploads/{{sha256}}"): Verb.WRITE,
    ("GET", f"{_API}/blobs/{{sha256}}"): Verb.REVEAL,
    ("GET", f"{_API}/packages"): Verb.READ,
    ("POST", f"{_API}/packages"): Verb.WRITE,
    ("GET", f"{_API}/packages/{{name}}/{{version}}"): Verb.READ,
    ("POST", f"{_API}/packages/{{name}}/{{version}}/yank"): Verb.OPERATE,
    ("POST", f"{_API}/packages/{{name}}/{{version}}/prefetch"): Verb.WRITE,
    ("DELETE", f"{_API}/packages/{{name}}/{{version}}"): Verb.WRITE,
    ("GET", f"{_API}/package-status"): Verb.READ,
    ("GET", f"{_API}/keys"): Verb.READ,
    ("POST", f"{_API}/keys"): Verb.REVOKE,
    ("POST", f"{_API}/keys/{{key_id}}/rotate"): Verb.REVOKE,
    ("DELETE", f"{_API}/keys/{{key_id}}"): Verb.REVOKE,
    ("GET", f"{_API}/revocations"): Verb.READ,
    ("GET", f"{_API}/revocations/{{revocation_id}}"): Verb.READ,
    ("POST", f"{_API}/revocations"): Verb.REVOKE,
    ("DELETE", f"{_API}/revocations/{{revocation_id}}"): Verb.REVOKE,
    ("GET", f"{_API}/tokens"): Verb.READ,
    ("POST", f"{_API}/tokens"): Verb.READ,
    ("DELETE", f"{_API}/tokens/{{token_id}}"): Verb.READ,
    ("GET", f"{_API}/join-tokens"): Verb.ADMIN,
    ("POST", f"{_API}/join-tokens"): Verb.ADMIN,
    ("DELETE", f"{_API}/join-tokens/{{grant_id}}"): Verb.ADMIN,
    ("POST", f"{_API}/nodes/{{region}}/{{name}}/revoke"): Verb.ADMIN,
    ("GET", f"{_API}/trust"): Verb.READ,
    ("POST", f"{_API}/trust/{{rotation}}"): Verb.ADMIN,
    ("POST", f"{_API}/auth/logout"): Verb.READ,
    ("GET", f"{_API}/auth/whoami"): Verb.READ,
    ("GET", f"{_API}/auth/can-i"): Verb.READ,
    ("GET", f"{_API}/openapi.json"): Verb.READ,
    ("GET", "/metrics"): Verb.READ,
}
"""(method, path) → what it does. Tokens are everybody's to make, for at most what the maker may do."""

APPROVALS = frozenset({"reject"})
"""Actions on rollouts that are approvals, although they share a route with the others."""


def verb_of(method: str, template: str, path: str) -> Verb | None:
    """What a request does; None if no role may do it.

    Args:
        template: the path of its route.
        path: its own.
    """
    if template.endswith("/rollouts/{name}/{action}") and path.rpartition("/")[2] in APPROVALS:
        return Verb.APPROVE
    return VERBS.get((method, template))
