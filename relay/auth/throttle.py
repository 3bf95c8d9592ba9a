"""What happens again and again is told once a second, with a count of the times between."""

from __future__ import annotations

_PERIOD_S = 1.0


class Throttle:
    """Lets one event of each kind pass in a second, and counts the others."""

    def __init__(self) -> None:
        self._kinds: dict[str, tuple[float, int]] = {}
        """Kind → (when its last event passed, how many did not since)."""

    def passing(self, kind: str, now: float) -> int | None:
        """How many events of this kind did not pass since the last one that did; None if this one does not either.

        Args:
            now: seconds of a clock that never goes backwards.
        """
        kept = self._kinds.get(kind)
        if kept is not None and now - kept[0] < _PERIOD_S:
            self._kinds[kind] = kept[0], kept[1] + 1
            return None
        self._kinds[kind] = now, 0
        return kept[1] if kept is not None else 0

    def forget_old(self, now: float) -> None:
        """Forget the kinds whose next event would pass."""
        self._kinds = {kind: kept for kind, kept in self._kinds.items() if now - kept[0] < _PERIOD_S}
