"""The state of the link: whether the control plane is connected and accepts reports."""

from __future__ import annotations

from relay.aio.clock import Clock


class LinkHealth:
    """The state of the link. Only `LinkClient` changes it."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._up_since: float | None = None
        """When Sync last came up; None while it is down."""
        self._heard_at = clock.monotonic()
        self._acked_at = clock.monotonic()
        """When a report was last acknowledged, or when the link came up."""
        self.refusal = ""
        """Why the control plane refuses this node's reports; empty if it accepts them or cannot be reached."""

    @property
    def connected(self) -> bool:
        """Whether the control plane is connected."""
        return self._up_since is not None

    @property
    def word(self) -> str:
        """`up`, `down` or `refused`."""
        return "refused" if self.refusal else "up" if self.connected else "down"

    def silent_s(self) -> float:
        """Seconds since the control plane was last heard; 0 while it is connected."""
        return 0.0 if self.connected else self._clock.monotonic() - self._heard_at

    def unacknowledged_s(self) -> float:
        """Seconds without an acknowledged report while the control plane is connected."""
        return self._clock.monotonic() - self._acked_at if self.connected else 0.0

    def record_message(self) -> bool:
        """Record a message from the control plane. Returns whether it is the first since the link came up."""
        is_first = self._up_since is None
        self._heard_at = self._clock.monotonic()
        if is_first:
            self._up_since = self._acked_at = self._heard_at
        return is_first

    def record_ack(self) -> None:
        """Record that a report was acknowledged."""
        self.refusal = ""
        self._acked_at = self._clock.monotonic()

    def record_down(self) -> None:
        """Record that the Sync stream has ended."""
        if self._up_since is not None:
            self._heard_at = self._clock.monotonic()
        self._up_since = None
