"""Who is on the candidate: a bucket an agent, a threshold a stage, one comparison.

The control plane publishes a threshold, not a percentage: the k-th smallest bucket among the targets it knows. So 5 % of
20 agents is exactly one, and no list of agents travels.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable
from typing import Annotated

from pydantic import Field

from relay.ids import digest64

RolloutName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,159}$")]
"""ASSIGNMENT-NUMBER."""
BUCKETS = 1 << 52
"""Buckets are below this: an integer that every JSON reader keeps exact."""
EVERYONE = BUCKETS
"""The threshold of 100 %: also of agents that are not known yet."""
NOBODY = 0


def bucket(rollout: str, agent_id: str) -> int:
    """The agent's place in this rollout: the same on every node, another in the next rollout."""
    return digest64(f"{rollout}\0{agent_id}".encode()) >> 12


def threshold(buckets: Iterable[int], percentage: float) -> int:
    """The threshold that puts `percentage` of the targets on the candidate: rounded, at least one.

    Args:
        buckets: of all targets known.
        percentage: above 0, at most 100.
    """
    if percentage >= 100:
        return EVERYONE
    targets = list(buckets)
    if not targets or percentage <= 0:
        return NOBODY
    count = max(1, math.floor(len(targets) * percentage / 100 + 0.5))
    return heapq.nsmallest(count, targets)[-1] + 1
