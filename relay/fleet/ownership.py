"""Decide which node an agent belongs to when two nodes claim it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Holding:
    """A node's claim to an agent."""

    node: str
    """REGION/NAME."""
    session_started_ms: int
    """By the observer's clock; see `corrected`."""
    live: bool = True
    """The agent is connected to the node, and the node's link is up."""


def corrected(session_started_ms: int, behind_ms: int, now_ms: int) -> int:
    """The start of a session by the observer's clock, never later than now.

    Args:
        session_started_ms: by the node's clock.
        behind_ms: how far the node's clock is behind.
        now_ms: when the session was reported.
    """
    return min(session_started_ms + behind_ms, now_ms)


def winner(current: Holding | None, newcomer: Holding) -> Holding:
    """Prefer the live claim, then the newest session.

    Ties are broken by the node's name, so that every observer agrees.
    """
    if current is None or current.node == newcomer.node:
        return newcomer
    return max(current, newcomer, key=lambda c: (c.live, c.session_started_ms, c.node))
