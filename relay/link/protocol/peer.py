"""Who is at the other end, and how the versions of its policy are ordered."""

from __future__ import annotations

from typing import NamedTuple

from relay.fleet.facts import Trusted
from relay.pb.relay.v1 import link_pb2

CHUNK_BYTES = 1 << 20
"""Approximate size of an Update or report; a larger resource is sent alone."""
WINDOW = 16
"""How many reports may be unacknowledged."""

Version = tuple[int, int]
"""(epoch, number) of a manifest."""


def version_message(version: Version) -> link_pb2.ManifestVersion:
    """Convert (epoch, number) to a message."""
    return link_pb2.ManifestVersion(epoch=version[0], number=version[1])


class Peer(NamedTuple):
    """A node at the other end of the link."""

    region: str
    name: str
    incarnation: str = ""
    """Distinguishes successive processes with the same name."""
    software_version: str = ""
    trusted: Trusted = ()
    """Agent attributes that it accepts as labels."""
    installation: str = ""
    """Of its store: the same after a restart."""

    def message(self) -> link_pb2.NodeIdentity:
        """The identity that the node sends in its hello."""
        return link_pb2.NodeIdentity(
            region=self.region,
            name=self.name,
            incarnation=self.incarnation,
            software_version=self.software_version,
            trusted_attributes=() if self.trusted == "all" else self.trusted,
            all_attributes_trusted=self.trusted == "all",
            installation=self.installation,
        )

    @classmethod
    def of(cls, message: link_pb2.NodeIdentity) -> Peer:
        """Create a peer from `message`."""
        trusted: Trusted = "all"
        if not message.all_attributes_trusted:
            trusted = tuple(message.trusted_attributes)
        names = message.region, message.name, message.incarnation, message.software_version
        return cls(*names, trusted, message.installation)
