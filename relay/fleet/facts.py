"""What selectors see of an agent: labels are trusted, attributes are the agent's own claims."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from relay.documents import Scalar
from relay.opamp import identity
from relay.opamp.record import Record
from relay.pb.relay.v1 import link_pb2
from relay.policy.selector import Facts

REGION = "region"
Trusted = Literal["all"] | tuple[str, ...]
"""Attributes of a node's agents that count as labels."""


class Proof(NamedTuple):
    """What an agent's credential proves."""

    is_required: bool = False
    """Its node asks for credentials."""
    agent_id: bool = False
    """It is this agent's alone."""
    labels: str = ""
    """Its labels, a JSON object; empty for none."""

    @classmethod
    def of(cls, state: link_pb2.AgentState) -> Proof:
        """That of an agent's state."""
        return cls(bool(state.auth_method), state.id_proved, state.labels)

    @classmethod
    def of_record(cls, record: Record) -> Proof:
        """That of an agent's record."""
        credential = record.credential
        return NO_PROOF if credential is None else cls(True, bool(credential.agent_id), credential.labels)

    def id_counts(self, trusted: Trusted) -> bool:
        """Whether selectors may go by the agent id."""
        return not self.is_required or self.agent_id or trusted == "all" or identity.INSTANCE_ID in trusted


NO_PROOF = Proof()


def labels_of(attributes: Mapping[str, Any], region: str, trusted: Trusted, proof: Proof = NO_PROOF) -> dict[str, Any]:
    """The labels of an agent.

    Attributes that the settings trust; over them the labels of its credential; over all the region, which its node sets.
    """
    if trusted == "all":
        labels = {k: v for k, v in attributes.items() if isinstance(v, Scalar)}
    else:
        labels = {k: attributes[k] for k in trusted if isinstance(attributes.get(k), Scalar)}
    if proof.labels:
        labels |= json.loads(proof.labels)
    labels[REGION] = region
    return labels


def facts_of(
    description: bytes,
    agent_id: str,
    region: str,
    trusted: Trusted,
    only: frozenset[str] | None = None,
    proof: Proof = NO_PROOF,
) -> Facts:
    """The facts that selectors match, from a serialised AgentDescription.

    Args:
        only: keys to extract; None for all.
    """
    attributes = identity.attributes(description, only)
    return Facts(agent_id, labels_of(attributes, region, trusted, proof), attributes, proof.id_counts(trusted))
