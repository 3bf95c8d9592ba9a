"""Addresses that fail often get their refusals late. A good credential from the same address (a NAT) never waits."""

from __future__ import annotations

from dataclasses import dataclass

_WINDOW_S = 60.0
_TOLERATED = 9
"""Failures of an address in a window that are answered at once."""
_MAX_ADDRESSES = 10_000
"""The one whose window began first is forgotten."""


@dataclass(slots=True)
class _Window:
    began: float
    count: int = 0


class Failures:
    """Failed authentications by address."""

    def __init__(self) -> None:
        self._windows: dict[str, _Window] = {}

    def is_over(self, ip: str, now: float) -> bool:
        """Whether the next failure of an address would be answered late.

        Args:
            now: seconds of a clock that never goes backwards.
        """
        window = self._windows.get(ip)
        return window is not None and now - window.began < _WINDOW_S and window.count >= _TOLERATED

    def add(self, ip: str, now: float) -> bool:
        """Count a failure. Returns whether its answer should be late.

        Args:
            now: seconds of a clock that never goes backwards.
        """
        window = self._windows.get(ip)
        if window is None or now - window.began >= _WINDOW_S:
            self._windows.pop(ip, None)
            while len(self._windows) >= _MAX_ADDRESSES:
                del self._windows[next(iter(self._windows))]
            window = self._windows[ip] = _Window(now)
        window.count += 1
        return window.count > _TOLERATED
