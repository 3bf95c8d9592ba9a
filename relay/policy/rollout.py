"""Which agents get the candidate: each agent has a bucket, each stage a threshold, and the two are compared.

The control plane publishes a threshold, not a percentage: the k-th smallest bucket among the targets that it knows. So 5 %
of 20 agents is exactly one, and no list of agents needs to be sent.
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
"""Number of buckets, small enough for JSON readers to keep every bucket exact."""
EVERYONE = BUCKETS
"""The threshold of 100 %. It includes agents that are not known yet."""
NOBODY = 0


def bucket(rollout: str, agent_id: str) -> int:
    """The agent's bucket in this rollout: the same on every node, but different in each rollout."""
    return digest64(f"{rollout}\0{agent_id}".encode()) >> 12


def threshold(buckets: Iterable[int], percentage: float) -> int:
    """The threshold that puts `percentage` of the targets, rounded and at least one, on the candidate.

    Args:
        buckets: the buckets of all known targets.
        percentage: above 0, at most 100.
    """
    if percentage >= 100:
        return EVERYONE
    targets = list(buckets)
    if not targets or percentage <= 0:
        return NOBODY
    count = max(1, math.floor(len(targets) * percentage / 100 + 0.5))
    return heapq.nsmallest(count, targets)[-1] + 1
