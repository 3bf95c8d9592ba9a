"""What selectors see of an agent: labels are trusted, attributes are the agent's own claims."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from relay.opamp import identity
from relay.policy.model import Scalar
from relay.policy.selector import Facts

REGION = "region"
Trusted = Literal["all"] | tuple[str, ...]
"""Attributes of a node's agents that count as labels."""


def labels_of(attributes: Mapping[str, Any], region: str, trusted: Trusted) -> dict[str, Any]:
    """The labels of an agent: attributes that the settings trust, and the region, which its node sets."""
    if trusted == "all":
        labels = {k: v for k, v in attributes.items() if isinstance(v, Scalar)}
    else:
        labels = {k: attributes[k] for k in trusted if isinstance(attributes.get(k), Scalar)}
    labels[REGION] = region
    return labels


def facts_of(
    description: bytes,
    agent_id: str,
    region: str,
    trusted: Trusted,
    only: frozenset[str] | None = None,
) -> Facts:
    """The facts that selectors match, from a serialised AgentDescription.

    Args:
        only: keys to extract; None for all.
    """
    attributes = identity.attributes(description, only)
    return Facts(agent_id, labels_of(attributes, region, trusted), attributes)
