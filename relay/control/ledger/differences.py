"""What differs between two mappings of a state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

V = TypeVar("V")


def differences(before: Mapping[str, V], after: Mapping[str, V]) -> tuple[dict[str, V], Iterable[str]]:
    """(new and changed items, names of removed items)."""
    if before is after:
        return {}, ()
    fresh = {key: value for key, value in after.items() if (old := before.get(key)) is not value and old != value}
    return fresh, before.keys() - after.keys()
