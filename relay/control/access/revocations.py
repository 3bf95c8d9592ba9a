"""Revocations: credentials of agents that are refused before they end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from relay.auth.revocations import Kind
from relay.ids import sha256

_ID_DIGITS = 10


@dataclass(frozen=True, slots=True)
class Revocation:
    """One revocation."""

    kind: Kind
    value: str
    reason: str
    by: str
    at_ms: int

    @property
    def id(self) -> str:
        """The name by which people refer to it. What is revoked twice is revoked once."""
        return f"revocation-{sha256(f'{self.kind.value}/{self.value}'.encode()).hex()[:_ID_DIGITS]}"

    def plain(self) -> dict[str, Any]:
        """As plain values, for the database."""
        return {
            "kind": self.kind.value,
            "value": self.value,
            "reason": self.reason,
            "by": self.by,
            "at_ms": self.at_ms,
        }

    @classmethod
    def from_plain(cls, value: Mapping[str, Any]) -> Revocation:
        """The reverse of `plain`."""
        return cls(Kind(value["kind"]), value["value"], value["reason"], value["by"], value["at_ms"])
