"""A remote config ready to send: encoded once, shared by every agent that gets it (spec: AgentRemoteConfig)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from relay.ids import ConfigHash
from relay.pb.opamp.v1 import opamp_pb2 as pb

FORGIVEN = -1
"""In the place of the retry generation of a failure that is forgiven."""


class OfferedSlot(NamedTuple):
    """What one slot of an offer is made of."""

    slot: str
    assignment: str
    content_hash: bytes
    retry: int = 0
    """The assignment's retry generation."""


class Failure(NamedTuple):
    """Content that an agent could not apply."""

    slot: str
    content_hash: bytes
    retry: int
    """Forgiven once the assignment has a higher one."""
    error_message: str
    at_ms: int
    forgiven: bool = False
    """It was no fault of the content's: it may be offered again."""

    @property
    def attempt(self) -> tuple[str, bytes, int]:
        """What failed, without the words and the time: what a decision depends on.

        One that is forgiven is of no generation that counts.
        """
        return self.slot, self.content_hash, FORGIVEN if self.forgiven else self.retry


class WithheldSlot(NamedTuple):
    """What an agent should have of its assignment, and is not offered."""

    slot: str
    assignment: str
    content_hash: bytes
    """What the agent failed at; empty where its node can make nothing of it."""
    reason: str
    """Why the node cannot make it; empty where the agent failed at it."""


@dataclass(frozen=True, slots=True, eq=False)
class Offer:
    """One distinct config. Compare by `config_hash`."""

    config_hash: ConfigHash
    field: bytes
    """ServerToAgent.remote_config, tag and length included: joined to an agent's own prefix when sent."""
    slots: tuple[OfferedSlot, ...]
    """By slot; shared by all records of agents that have it."""


def encode(config_hash: ConfigHash, slots: Mapping[str, tuple[bytes, str]], made_of: tuple[OfferedSlot, ...]) -> Offer:
    """Encode a config map of slot → (body, content type).

    Raises:
        ValueError: no slots. An empty map would stop a supervised Collector.
    """
    if not slots:
        raise ValueError("an empty config map is never offered")
    remote = pb.AgentRemoteConfig(config_hash=config_hash)
    for slot, (body, content_type) in slots.items():
        remote.config.config_map[slot].body = body
        remote.config.config_map[slot].content_type = content_type
    field = pb.ServerToAgent(remote_config=remote).SerializeToString(deterministic=True)
    return Offer(config_hash, field, made_of)
