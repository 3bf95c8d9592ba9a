"""How many connections may be open: limited by the settings and by the file descriptors.

Some descriptors are reserved for the node itself: its link, probes, metrics and disk.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable

RESERVED = 128
"""Descriptors that agents cannot use."""
FOR_PROBES = 32
"""The part of `RESERVED` for connections that inspect a full node."""
_CROWD = 4096
"""How many connections may wait for a refusal if descriptors are plenty and places few."""
_FOR_HEADS = 64
"""The part of `RESERVED` for connections that have not sent a whole request head yet."""


def raise_descriptor_limit() -> int:
    """Raise this process's limit of open files as far as it goes. Return how many it can still open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        hard = max(soft, 1 << 20)
    if soft < hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        except (ValueError, OSError):
            hard = soft  # macOS has a lower limit besides
    return max(0, hard - _open_descriptors())


def _open_descriptors() -> int:
    for folder in ("/proc/self/fd", "/dev/fd"):
        try:
            return len(os.listdir(folder))
        except OSError:
            continue
    return 32


class Places:
    """The connections that agents may have open.

    Args:
        wanted: the number in the settings.
        descriptors: how many files the process can still open.
    """

    def __init__(self, wanted: int, descriptors: int) -> None:
        self.limit = max(1, min(wanted, descriptors - RESERVED))
        self.configured = wanted
        self._descriptors = descriptors
        self._sources: list[Callable[[], int]] = []

    def count(self, source: Callable[[], int]) -> None:
        """Include a source's connections in `used`."""
        self._sources.append(source)

    @property
    def used(self) -> int:
        """Connections that are open."""
        return sum(source() for source in self._sources)

    @property
    def waiting_limit(self) -> int:
        """The limit of connections without a whole request head: they may use free places."""
        free = self._descriptors - self.used - (RESERVED - _FOR_HEADS)
        return max(1, min(max(self.limit, _CROWD), free))
