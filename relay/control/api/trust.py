"""Routes of the control plane's own keys: what nodes trust, and how it is replaced."""

from __future__ import annotations

from typing import Annotated, Any

from cryptography import x509
from fastapi import FastAPI
from pydantic import Field

from relay.auth.signing import Signed
from relay.control.api.caller import Actor
from relay.control.api.models import RequestBody, RotationView, TrustView, answers
from relay.control.fleet.fleet import Fleet
from relay.control.identity import Identities
from relay.control.keys.trust import Trust
from relay.control.trust.rotation import Rotation
from relay.errors import Conflict, Problem, Refused
from relay.fleet.view import rfc3339

_HEX_KEY = r"^[0-9a-f]{64}$"
Base64 = Annotated[str, Field(max_length=512 << 10)]


class SignedPayload(RequestBody):
    """A payload and a root's signature of it, in base64."""

    payload: Base64
    key: str = Field(max_length=64)
    signature: Base64


class Rotate(RequestBody):
    """Without `signed`, begins a rotation that a root must sign; with it, ends it."""

    root: Annotated[str, Field(pattern=_HEX_KEY)] | None = Field(
        default=None, description="public key of the new root, Ed25519 in hex; to replace the root only"
    )
    signed: Annotated[list[SignedPayload], Field(min_length=1, max_length=8)] | None = None


def add_trust_routes(api: FastAPI, trust: Trust, fleet: Fleet, identities: Identities | None) -> None:
    """Add the routes to the application.

    Args:
        identities: None where nodes need no certificates.
    """
    own = identities if identities is not None and identities.is_own else None

    @api.get("/api/v1/trust", **answers(TrustView, "trust"))
    async def get_trust() -> dict[str, Any]:
        """What nodes trust: the newest key set, and which connected nodes do not have it yet."""
        current = trust.current
        certificates = [x509.load_pem_x509_certificate(pem.encode()) for pem in current.authorities]
        return {
            "version": current.version,
            "trust_domain": current.trust_domain,
            "roots": [{"id": key, "key": public.hex()} for key, public in sorted(current.roots.items())],
            "manifest": [{"id": key, "key": public.hex()} for key, public in sorted(current.manifests.items())],
            "ca": [
                {
                    "subject": certificate.subject.rfc4514_string(),
                    "serial": f"{certificate.serial_number:x}",
                    "not_after": rfc3339(round(certificate.not_valid_after_utc.timestamp() * 1000)),
                }
                for certificate in certificates
            ],
            "nodes_on_former_ca": own.registry.still_with_former_ca() if own is not None and trust.closing else [],
            "nodes_connected": sum(node.connected for node in fleet.census.nodes.values()),
            "nodes_without": sorted(
                node.key for node in fleet.census.nodes.values() if node.connected and node.key_set < current.version
            ),
        }

    @api.post("/api/v1/trust/{rotation}", **answers(RotationView, "trust"))
    async def rotate(rotation: Rotation, request: Rotate, actor: Actor) -> dict[str, Any]:
        """Replace a key. One that a root must sign takes two requests: the first says what to sign."""
        to_sign: tuple[bytes, ...] = ()
        _check(rotation, request)
        if rotation is Rotation.DOWNLOADS:
            await trust.rotate_downloads(actor=actor)
        elif rotation is Rotation.MASTER:
            await trust.rotate_master(actor=actor)
        elif rotation is Rotation.CA and own is None:
            raise Conflict("no node has a certificate of this CA: the link has no TLS, or a CA of its own")
        elif request.signed is None:
            root = bytes.fromhex(request.root) if request.root is not None else b""
            to_sign = (await trust.propose(rotation, root=root, actor=actor)).payloads
        else:
            await trust.adopt(rotation, [_signed(item) for item in request.signed], actor=actor)
        return {
            "rotation": rotation.value,
            "version": trust.current.version,
            "to_sign": [payload.decode() for payload in to_sign],
        }


def _check(rotation: Rotation, request: Rotate) -> None:
    if request.signed is not None and not rotation.is_signed:
        raise Refused([Problem("request", 0, "signed", f"no signature is needed to rotate {rotation.value}")])
    wants_root = rotation is Rotation.ROOT and request.signed is None
    if (request.root is not None) != wants_root:
        reason = (
            "is needed to replace the root" if wants_root else "is only for the first request that replaces the root"
        )
        raise Refused([Problem("request", 0, "root", reason)])


def _signed(item: SignedPayload) -> Signed:
    try:
        return Signed.from_plain(item.model_dump())
    except ValueError as error:
        raise Refused([Problem("request", 0, "signed", str(error))]) from None
