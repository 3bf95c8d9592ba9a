"""Packages offered to an agent, and how its package statuses are interpreted (spec: Packages).

An offer is the complete set that the agent should have. It is encoded when it is sent: the download URLs use the address by
which the agent reached the node, and they expire.
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
_MAX_TRIES = 2
"""Downloads also fail for temporary reasons (an expired URL, a node that went away): only the second failure counts."""


class OfferedPackage(NamedTuple):
    """One package of an offer."""

    name: str
    version: str
    type: str
    """`top-level` or `addon`."""
    hash: bytes
    """Hash of the package's complete definition."""
    sha256: bytes
    """SHA-256 of the file."""
    signature: bytes


@dataclass(frozen=True, slots=True, eq=False)
class PackagesOffer:
    """One distinct set of packages. Compare by `hash`."""

    hash: bytes
    """all_packages_hash."""
    packages: tuple[OfferedPackage, ...]
    slots: tuple[OfferedSlot, ...]
    """The slots behind the offer; shared by the records of all agents with this offer."""
    hashes: tuple[tuple[str, bytes], ...]
    """(name, hash) of each package; shared likewise."""


def encode(offer: PackagesOffer, url_of: Callable[[bytes], str]) -> bytes:
    """ServerToAgent.packages_available, tag and length included.

    Args:
        url_of: returns the download URL of a file by its SHA-256.
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
    """The last offer of packages, and its outcome by the agent's reports."""

    __slots__ = ("_failing", "_failures", "_stale", "hashes", "reason", "reported_hash", "should_retry", "unverified")

    def __init__(self) -> None:
        super().__init__()
        self.hashes: tuple[tuple[str, bytes], ...] = ()
        self.reported_hash = b""
        """The all_packages_hash that the agent last reported."""
        self.reason = ""
        """The agent's explanation of a failure."""
        self.unverified: frozenset[str] = frozenset()
        """Packages that failed to install and that nobody has checked since; the empty name stands for all of them."""
        self.should_retry = False
        """A package of `hash` failed for the first time: the same set should be offered once more."""
        self._stale: bytes | None = None
        """The statuses when `hash` was sent: an agent repeats them under the new hash before it has done anything."""
        self._failing: frozenset[str] = frozenset()
        """Packages that the agent last reported as failed."""
        self._failures: dict[str, int] = {}
        """Package → number of failures under `hash`."""

    def offer_packages(self, offer: PackagesOffer, statuses: bytes | None, healthy: bool | None, *, held: bool) -> bool:
        """Like `offer`, for packages.

        Args:
            offer: the packages.
            statuses: the agent's latest PackageStatuses.
            healthy: see `offer`.
            held: see `offer`.
        """
        if offer.hash != self.hash:
            self.should_retry, self._failures, self._failing = False, {}, frozenset()
        changed = self.offer(offer.hash, offer.slots, healthy, held=held)
        self.hashes = offer.hashes
        if changed:
            self.report(statuses)
        return changed

    def mark_sent(self, statuses: bytes | None) -> None:
        """The offer is being sent."""
        self.should_retry = False
        self._stale = _without_hash(statuses) if statuses else None

    def report(self, statuses: bytes | None) -> None:
        """Process the agent's PackageStatuses; None if it has sent none."""
        message = pb.PackageStatuses.FromString(statuses or b"")
        self.reported_hash = message.server_provided_all_packages_hash
        if (
            self._stale is not None
            and _without_hash(statuses or b"") == self._stale
            and self._current_failures(message)
        ):
            return
        if self.reported_hash != self.hash:
            self.take_status(self.reported_hash, "", "")
            return
        self._stale = None
        failing = self._current_failures(message)
        self.unverified |= failing.keys() - self._failing
        for name in failing.keys() - self._failing:
            self._failures[name] = self._failures.get(name, 0) + 1
            self.should_retry |= self._failures[name] < _MAX_TRIES
        self._failing = frozenset(failing)
        self.reason = "; ".join(f"{name}: {reason}" if name else reason for name, reason in sorted(failing.items()))
        if any(self._failures[name] >= _MAX_TRIES for name in failing):
            self.should_retry = False
            self.take_status(self.hash, FAILED, self.reason)
        else:
            self.take_status(self.hash, APPLIED if self._is_installed(message) else APPLYING, "")

    def _is_installed(self, message: pb.PackageStatuses) -> bool:
        return bool(self.hashes) and all(
            name in message.packages and message.packages[name].agent_has_hash == hash_ for name, hash_ in self.hashes
        )

    def _current_failures(self, message: pb.PackageStatuses) -> dict[str, str]:
        """Return package → reason for each package that failed to install; the empty name stands for all of them.

        A package that the agent has is installed, whatever its status: opamp-go keeps the message of an earlier failure.
        """
        offered = dict(self.hashes)
        failures = {
            name: status.error_message or "could not be installed"
            for name, status in message.packages.items()
            if name in offered
            and status.status == pb.PackageStatusEnum_InstallFailed
            and status.agent_has_hash != offered[name]
        }
        return {**failures, "": message.error_message} if message.error_message else failures

    def forgive(self, contents: Collection[bytes]) -> bool:
        """See `Offering.forgive`."""
        if not super().forgive(contents):
            return False
        self.should_retry, self._failures, self._failing = False, {}, frozenset()
        return True

    def inherit(self, old: Offering) -> None:
        """Take over the memory of the same agent under another instance_uid."""
        super().inherit(old)
        if isinstance(old, PackageOffering):
            self.hashes, self._stale = old.hashes, old._stale
            self._failures, self._failing = old._failures, old._failing

    def message(self) -> link_pb2.Offering:
        """The message that is reported and stored."""
        message = super().message()
        message.reason = self.reason[:1000]
        message.packages.extend(link_pb2.PackageHash(name=name, hash=hash_) for name, hash_ in self.hashes)
        return message

    def take(self, message: link_pb2.Offering) -> None:
        """Restore from `message`."""
        super().take(message)
        self.reason = message.reason
        self.hashes = tuple((p.name, p.hash) for p in message.packages)


def reported_hash(statuses: bytes | None) -> bytes:
    """The all_packages_hash that PackageStatuses refer to; empty for none."""
    return pb.PackageStatuses.FromString(statuses or b"").server_provided_all_packages_hash


def _without_hash(statuses: bytes) -> bytes:
    """PackageStatuses without their hash: an agent reports a new hash before it has done anything."""
    message = pb.PackageStatuses.FromString(statuses)
    message.ClearField("server_provided_all_packages_hash")
    return message.SerializeToString(deterministic=True)
