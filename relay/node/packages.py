"""The packages of a region at its node."""

from __future__ import annotations

from relay.opamp.packages import PackagesOffer


class Packages:
    """Implements `hub.PackageSource`."""

    def available(self, offer: PackagesOffer) -> bool:
        """See `hub.PackageSource`."""
        return False

    def field(self, offer: PackagesOffer, base_url: str) -> bytes:
        """See `hub.PackageSource`."""
        raise NotImplementedError

    def reachable(self, base_url: str) -> bool:
        """See `hub.PackageSource`."""
        return False
