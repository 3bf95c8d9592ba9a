"""What is pending for one agent: the latest message of each kind, never a queue (spec: Throttling, pending messages)."""

from __future__ import annotations

from collections.abc import Callable

from relay.opamp import body
from relay.opamp.offer import Offer
from relay.opamp.packages import PackagesOffer


class Outbox:
    """One pending message per kind; a newer one replaces it."""

    __slots__ = ("components", "full_state", "new_uid", "offer", "packages")

    def __init__(self) -> None:
        self.offer: Offer | None = None
        self.packages: PackagesOffer | None = None
        self.new_uid: bytes | None = None
        self.full_state = False
        self.components = False

    def __bool__(self) -> bool:
        return (
            self.full_state
            or self.components
            or self.offer is not None
            or self.packages is not None
            or self.new_uid is not None
        )

    def take(self, packages_field: Callable[[PackagesOffer], bytes]) -> bytes:
        """Empty the outbox and return the encoded fields of everything in it.

        Args:
            packages_field: encodes a packages offer for this agent.
        """
        parts = b""
        if self.full_state:
            parts += body.BOTH if self.components else body.FULL_STATE
        elif self.components:
            parts += body.COMPONENTS
        if self.new_uid is not None:
            parts += body.identification_field(self.new_uid)
        if self.offer is not None:
            parts += self.offer.field
        if self.packages is not None:
            parts += packages_field(self.packages)
        self.full_state, self.components, self.new_uid, self.offer, self.packages = False, False, None, None, None
        return parts
