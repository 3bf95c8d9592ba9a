"""How many connections there may be: as the settings say, and as there are file descriptors for.

What the node needs for itself (its link, probes, metrics, its disk) is never given to connections.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable

RESERVED = 128
"""Descriptors that are not for agents."""
FOR_PROBES = 32
"""Of them: connections that may look at a node that is full."""
_CROWD = 4096
"""So many may be waiting to be told that there is no room, where descriptors are many and places few."""
_FOR_HEADS = 64
"""Of them: connections that have not said yet what they want."""


def raise_descriptor_limit() -> int:
    """Let this process open as many files as it may. Gives how many it can still open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        hard = max(soft, 1 << 20)
    if soft < hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        except (ValueError, OSError):
            hard = soft  # macOS has a lower limit of its own
    return max(0, hard - _open_descriptors())


def _open_descriptors() -> int:
    for folder in ("/proc/self/fd", "/dev/fd"):
        try:
            return len(os.listdir(folder))
        except OSError:
            continue
    return 32


class Places:
    """The places of all agents' connections.

    Args:
        wanted: as the settings say.
        descriptors: how many the process can still open.
    """

    def __init__(self, wanted: int, descriptors: int) -> None:
        self.most = max(1, min(wanted, descriptors - RESERVED))
        self.wanted = wanted
        self._descriptors = descriptors
        self._sources: list[Callable[[], int]] = []

    def count(self, source: Callable[[], int]) -> None:
        """Count these connections too."""
        self._sources.append(source)

    @property
    def used(self) -> int:
        """Connections there are."""
        return sum(source() for source in self._sources)

    @property
    def most_waiting(self) -> int:
        """Connections that have not said yet what they want, at the very most: a place that nobody has is one for them."""
        free = self._descriptors - self.used - (RESERVED - _FOR_HEADS)
        return max(1, min(max(self.most, _CROWD), free))
