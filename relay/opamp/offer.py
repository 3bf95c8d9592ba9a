"""A remote config ready to send, encoded once and shared by every agent that gets it (spec: AgentRemoteConfig)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from relay.ids import ConfigHash
from relay.pb.opamp.v1 import opamp_pb2 as pb

FORGIVEN = -1
"""Replaces the retry generation of a forgiven failure."""


class OfferedSlot(NamedTuple):
    """One slot of an offer: its assignment and content."""

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
    """The assignment's retry generation; a higher one clears the failure."""
    error_message: str
    at_ms: int
    forgiven: bool = False
    """The content was not at fault and may be offered again."""

    @property
    def attempt(self) -> tuple[str, bytes, int]:
        """What decisions depend on: the failure without its message and time."""
        return self.slot, self.content_hash, FORGIVEN if self.forgiven else self.retry


class WithheldSlot(NamedTuple):
    """Content that an assignment selects for an agent but that is not offered to it."""

    slot: str
    assignment: str
    content_hash: bytes
    """The content that the agent failed to apply; empty if the node cannot produce any."""
    reason: str
    """Why the node cannot produce it; empty if the agent failed to apply it."""


@dataclass(frozen=True, slots=True, eq=False)
class Offer:
    """One distinct config. Compare by `config_hash`."""

    config_hash: ConfigHash
    field: bytes
    """ServerToAgent.remote_config, tag and length included; appended to the agent's own prefix when sent."""
    slots: tuple[OfferedSlot, ...]
    """Ordered by slot; shared by the records of all agents with this offer."""


def encode(config_hash: ConfigHash, slots: Mapping[str, tuple[bytes, str]], offered: tuple[OfferedSlot, ...]) -> Offer:
    """Encode a config map.

    Args:
        config_hash: identifies the offer.
        slots: slot → (body, content type).
        offered: the same slots, as records keep them.

    Raises:
        ValueError: there are no slots. An empty map would stop a supervised Collector.
    """
    if not slots:
        raise ValueError("an empty config map is never offered")
    remote = pb.AgentRemoteConfig(config_hash=config_hash)
    for slot, (body, content_type) in slots.items():
        remote.config.config_map[slot].body = body
        remote.config.config_map[slot].content_type = content_type
    field = pb.ServerToAgent(remote_config=remote).SerializeToString(deterministic=True)
    return Offer(config_hash, field, offered)
