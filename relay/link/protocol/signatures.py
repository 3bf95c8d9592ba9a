"""Signed policy: manifests and Freshness, and what on a node's disk they vouch for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from relay.auth.key_sets import KeyChain
from relay.auth.signing import Purpose, Signed
from relay.ids import sha256
from relay.link.protocol.peer import Version, version_message
from relay.pb.relay.v1 import link_pb2

M = TypeVar("M", bound=Message)


def version_of(message: link_pb2.ManifestVersion) -> Version:
    """The reverse of `version_message`."""
    return message.epoch, message.number


def parsed(message: M, payload: bytes) -> M:
    """Read a payload into an empty message.

    Raises:
        ValueError: it is not one.
    """
    try:
        message.ParseFromString(payload)
    except DecodeError:
        raise ValueError(f"the {type(message).__name__} cannot be read") from None
    return message


def entries_of(manifest: link_pb2.Manifest) -> dict[str, bytes]:
    """Resource name → digest."""
    return {entry.name: entry.digest for entry in manifest.entries}


def signed_message(signed: Signed) -> link_pb2.Signed:
    """Convert a signed payload to a message."""
    return link_pb2.Signed(payload=signed.payload, key=signed.key, signature=signed.signature)


def opened(purpose: Purpose, message: link_pb2.Signed, chain: KeyChain) -> Signed:
    """A signed payload of policy.

    Raises:
        ValueError: no key that signs policy signed it.
    """
    signed = Signed(message.payload, message.key, message.signature)
    if not chain.is_signed(purpose, signed):
        what = purpose.name.lower()
        raise ValueError(f"the {what} is not signed by a key of key set {chain.current.version}")
    return signed


def needed(held: Mapping[str, bytes], manifests: Sequence[Signed]) -> tuple[Signed, ...]:
    """The first manifest, and those after it that vouch for what the ones before them do not."""
    kept = list(manifests[:1])
    missing = set(vouched(held, kept)[1])
    for manifest in manifests[1:]:
        if newly := missing & set(vouched({name: held[name] for name in missing}, [manifest])[0]):
            missing -= newly
            kept.append(manifest)
    return tuple(kept)


def vouched(held: Mapping[str, bytes], manifests: Iterable[Signed]) -> tuple[dict[str, bytes], list[str]]:
    """(resources that a manifest lists with their digest, names of the others).

    Args:
        manifests: their signatures were verified.

    Raises:
        ValueError: one cannot be read.
    """
    listed: set[tuple[str, bytes]] = set()
    for signed in manifests:
        listed.update(entries_of(parsed(link_pb2.Manifest(), signed.payload)).items())
    good = {name: payload for name, payload in held.items() if (name, sha256(payload)) in listed}
    return good, sorted(held.keys() - good.keys())


def check_stored(region: str, version: Version, manifests: Sequence[Signed], chain: KeyChain) -> None:
    """Check the manifests that a node has on its disk.

    Raises:
        ValueError: one is not signed by the control plane that the node trusts, or the first is not the one in force.
    """
    if not all(chain.was_signed(Purpose.MANIFEST, signed) for signed in manifests):
        raise ValueError("a manifest is not signed by the control plane that this node trusts")
    read = [parsed(link_pb2.Manifest(), signed.payload) for signed in manifests]
    if not read or version_of(read[0].version) != version or any(manifest.region != region for manifest in read):
        raise ValueError("the signed manifest is not the one in force")


def manifest_payload(region: str, version: Version, resources: Mapping[str, bytes]) -> bytes:
    """The manifest of a region's policy, serialised."""
    digests = {name: sha256(payload) for name, payload in resources.items()}
    return manifest_of(region, version, digests).SerializeToString()


def freshness_payload(region: str, version: Version, now_ms: int) -> bytes:
    """Says that a policy is the newest, serialised."""
    freshness = link_pb2.Freshness(version=version_message(version), issued_at_unix_ms=now_ms, region=region)
    return freshness.SerializeToString()


def manifest_of(region: str, version: Version, digests: Mapping[str, bytes]) -> link_pb2.Manifest:
    """The manifest of a region's policy.

    Args:
        digests: resource name → digest.
    """
    entries = [link_pb2.ResourceRef(name=name, digest=digest) for name, digest in sorted(digests.items())]
    return link_pb2.Manifest(version=version_message(version), region=region, entries=entries)
