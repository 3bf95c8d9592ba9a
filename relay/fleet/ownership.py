"""Which node an agent is at, when two say that they have it: the newest session start wins."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Claim:
    """A node says that an agent is its own."""

    node: str
    """REGION/NAME."""
    session_started_ms: int


def winner(current: Claim | None, claim: Claim) -> Claim:
    """Who has the agent. Equal starts are decided by the node's name, so that every observer agrees."""
    if current is None or current.node == claim.node:
        return claim
    return max(current, claim, key=lambda c: (c.session_started_ms, c.node))
