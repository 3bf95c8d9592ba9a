"""Which node an agent is at, when two say that they have it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Holding:
    """A node says that an agent is its own."""

    node: str
    """REGION/NAME."""
    session_started_ms: int
    """By the clock of who decides; see `corrected`."""
    live: bool = True
    """The agent is connected there, and its node can be heard."""


def corrected(session_started_ms: int, behind_ms: int, now_ms: int) -> int:
    """When a session began, by the clock of who asks: never later than now.

    Args:
        session_started_ms: as the node dated it.
        behind_ms: how far the node's clock is behind.
        now_ms: when it was reported.
    """
    return min(session_started_ms + behind_ms, now_ms)


def winner(current: Holding | None, newcomer: Holding) -> Holding:
    """Who has the agent: who has it live, then the newest session.

    Equal ones are decided by the node's name, so that every observer agrees.
    """
    if current is None or current.node == newcomer.node:
        return newcomer
    return max(current, newcomer, key=lambda c: (c.live, c.session_started_ms, c.node))
