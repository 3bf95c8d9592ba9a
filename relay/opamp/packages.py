"""Packages offered to an agent, and what its words about them amount to (spec: Packages).

An offer is the complete set that the agent should have. Its bytes are made when it is sent: the address to download from is
the node's own as the agent reached it, and carries a permission that ends.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import NamedTuple

from relay.opamp.offer import OfferedSlot
from relay.opamp.offering import APPLIED, APPLYING, FAILED, Offering
from relay.pb.opamp.v1 import opamp_pb2 as pb
from relay.pb.relay.v1 import link_pb2

TOP_LEVEL, ADDON = "top-level", "addon"
_TYPES = {TOP_LEVEL: pb.PackageType_TopLevel, ADDON: pb.PackageType_Addon}
_TRIES = 2
"""A download fails for passing reasons too (its address has expired, the node went away): only the second time counts."""


class OfferedPackage(NamedTuple):
    """One package of an offer."""

    name: str
    version: str
    type: str
    """`top-level` or `addon`."""
    hash: bytes
    """Of everything about it."""
    sha256: bytes
    """Of its file."""
    signature: bytes


@dataclass(frozen=True, slots=True, eq=False)
class PackagesOffer:
    """One distinct set of packages. Compare by `hash`."""

    hash: bytes
    """all_packages_hash."""
    packages: tuple[OfferedPackage, ...]
    slots: tuple[OfferedSlot, ...]
    """The assignment that it is of; shared by all records of agents that have it."""
    hashes: tuple[tuple[str, bytes], ...]
    """(name, hash) of each package; shared too."""


def encode(offer: PackagesOffer, url_of: Callable[[bytes], str]) -> bytes:
    """ServerToAgent.packages_available, tag and length included.

    Args:
        url_of: SHA-256 of a file → where to download it.
    """
    available = pb.PackagesAvailable(all_packages_hash=offer.hash)
    for package in offer.packages:
        entry = available.packages[package.name]
        entry.type = _TYPES[package.type]
        entry.version = package.version
        entry.hash = package.hash
        entry.file.download_url = url_of(package.sha256)
        entry.file.content_hash = package.sha256
        entry.file.signature = package.signature
    return pb.ServerToAgent(packages_available=available).SerializeToString(deterministic=True)


class PackageOffering(Offering):
    """The last offer of packages, and what the agent's reports of it come to."""

    __slots__ = ("_failing", "_failures", "_stale", "again", "doubted", "hashes", "reason", "reported")

    def __init__(self) -> None:
        super().__init__()
        self.hashes: tuple[tuple[str, bytes], ...] = ()
        self.reported = b""
        """The all_packages_hash that the agent last spoke of."""
        self.reason = ""
        """What it says of a failure."""
        self.doubted: frozenset[str] = frozenset()
        """Packages that it could not install, and nobody has looked after yet; the empty name stands for all of them."""
        self.again = False
        """A package of `hash` failed for the first time: the same is to be offered once more."""
        self._stale: bytes | None = None
        """Its statuses when it was sent `hash`: an agent repeats them under that hash before it has done anything."""
        self._failing: frozenset[str] = frozenset()
        """Packages of which it last said that they failed."""
        self._failures: dict[str, int] = {}
        """Package → how often it failed at it under `hash`."""

    def offer_packages(self, offer: PackagesOffer, statuses: bytes | None, healthy: bool | None, *, held: bool) -> bool:
        """As `offer`, of packages.

        Args:
            statuses: the agent's PackageStatuses as it last sent them.
        """
        if offer.hash != self.hash:
            self.again, self._failures, self._failing = False, {}, frozenset()
        changed = self.offer(offer.hash, offer.slots, healthy, held=held)
        self.hashes = offer.hashes
        if changed:
            self.report(statuses)
        return changed

    def sent(self, statuses: bytes | None) -> None:
        """The offer leaves now."""
        self.again = False
        self._stale = _words(statuses) if statuses else None

    def report(self, statuses: bytes | None) -> None:
        """Take the agent's PackageStatuses; None where it has sent none."""
        message = pb.PackageStatuses.FromString(statuses or b"")
        self.reported = message.server_provided_all_packages_hash
        if self._stale is not None and _words(statuses or b"") == self._stale and self._failing_now(message):
            return
        if self.reported != self.hash:
            self.said(self.reported, "", "")
            return
        self._stale = None
        failing = self._failing_now(message)
        self.doubted |= failing.keys() - self._failing
        for name in failing.keys() - self._failing:
            self._failures[name] = self._failures.get(name, 0) + 1
            self.again |= self._failures[name] < _TRIES
        self._failing = frozenset(failing)
        self.reason = "; ".join(f"{name}: {reason}" if name else reason for name, reason in sorted(failing.items()))
        if any(self._failures[name] >= _TRIES for name in failing):
            self.again = False
            self.said(self.hash, FAILED, self.reason)
        else:
            self.said(self.hash, APPLIED if self._is_installed(message) else APPLYING, "")

    def _is_installed(self, message: pb.PackageStatuses) -> bool:
        return bool(self.hashes) and all(
            name in message.packages and message.packages[name].agent_has_hash == hash_ for name, hash_ in self.hashes
        )

    def _failing_now(self, message: pb.PackageStatuses) -> dict[str, str]:
        """Package that could not be installed → why; the empty name stands for all of them together.

        What an agent has is installed, whatever it says of it: opamp-go leaves the words of an earlier failure there.
        """
        wanted = dict(self.hashes)
        found = {
            name: status.error_message or "could not be installed"
            for name, status in message.packages.items()
            if name in wanted
            and status.status == pb.PackageStatusEnum_InstallFailed
            and status.agent_has_hash != wanted[name]
        }
        return {**found, "": message.error_message} if message.error_message else found

    def forgive(self, contents: Collection[bytes]) -> bool:
        """See `Offering.forgive`."""
        if not super().forgive(contents):
            return False
        self.again, self._failures, self._failing = False, {}, frozenset()
        return True

    def inherit(self, old: Offering) -> None:
        """Take over what is remembered of the same agent under another instance_uid."""
        super().inherit(old)
        if isinstance(old, PackageOffering):
            self.hashes, self._stale = old.hashes, old._stale
            self._failures, self._failing = old._failures, old._failing

    def message(self) -> link_pb2.Offering:
        """What goes up of it, and into the store."""
        message = super().message()
        message.reason = self.reason[:1000]
        message.packages.extend(link_pb2.PackageHash(name=name, hash=hash_) for name, hash_ in self.hashes)
        return message

    def take(self, message: link_pb2.Offering) -> None:
        """Undo `message`."""
        super().take(message)
        self.reason = message.reason
        self.hashes = tuple((p.name, p.hash) for p in message.packages)


def reported_hash(statuses: bytes | None) -> bytes:
    """The all_packages_hash that PackageStatuses are about; empty for none."""
    return pb.PackageStatuses.FromString(statuses or b"").server_provided_all_packages_hash


def _words(statuses: bytes) -> bytes:
    """PackageStatuses but for the hash that they are about: an agent names that before it has done anything."""
    message = pb.PackageStatuses.FromString(statuses)
    message.ClearField("server_provided_all_packages_hash")
    return message.SerializeToString(deterministic=True)
