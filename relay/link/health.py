"""What is known of the link: whether the other end is there, and takes what it is told."""

from __future__ import annotations

from relay.aio.clock import Clock


class LinkHealth:
    """Kept by the client of the link; others read it."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._up_since: float | None = None
        """When Sync last came up; None while it is down."""
        self._heard_at = clock.monotonic()
        self._acked_at = clock.monotonic()
        """When a report was last acknowledged, or could first have been."""
        self.refusal = ""
        """Why the control plane takes no reports of this node; empty while it does, or cannot be heard."""

    @property
    def connected(self) -> bool:
        """Whether the control plane is there."""
        return self._up_since is not None

    @property
    def word(self) -> str:
        """`up`, `down` or `refused`."""
        return "refused" if self.refusal else "up" if self.connected else "down"

    def silent_s(self) -> float:
        """Seconds since the control plane was last heard; 0 while it is there."""
        return 0.0 if self.connected else self._clock.monotonic() - self._heard_at

    def unheard_s(self) -> float:
        """Seconds for which the control plane, which is there, has acknowledged no report."""
        return self._clock.monotonic() - self._acked_at if self.connected else 0.0

    def heard(self) -> bool:
        """Something came down. Returns whether that is the first since the link came up."""
        is_first = self._up_since is None
        self._heard_at = self._clock.monotonic()
        if is_first:
            self._up_since = self._acked_at = self._heard_at
        return is_first

    def acknowledged(self) -> None:
        """A report was taken."""
        self.refusal = ""
        self._acked_at = self._clock.monotonic()

    def went_down(self) -> None:
        """Sync has ended."""
        if self._up_since is not None:
            self._heard_at = self._clock.monotonic()
        self._up_since = None
