"""The state of a node."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from relay.fleet.facts import Trusted
from relay.fleet.shards import Shards
from relay.link.protocol.sender import SyncSender
from relay.pb.relay.v1 import link_pb2
from relay.policy.snapshot import too_old_for

_UNKNOWN_FIELD = re.compile(r"([\w.]+)\s*;?\s+Extra inputs are not permitted")


@dataclass(slots=True, eq=False)
class NodeState:
    """What the control plane knows about a node."""

    region: str
    name: str
    trusted: Trusted = ()
    software_version: str = ""
    incarnation: str = ""
    installation: str = ""
    superseded: set[str] = field(default_factory=set)
    """Incarnations that a newer process of the same store replaced."""
    heard_at: float = 0.0
    """When it last sent something, by the monotonic clock."""
    last_seen_ms: int = 0
    reporting: int = 0
    """Open Report streams. There may be two while an old one dies."""
    streams: int = 0
    """The number of Report streams so far."""
    verified: bool = False
    """Both ends had the same agents in the same states when compared after its Report stream came up."""
    departed: bool = False
    """It said goodbye."""
    aside: dict[bytes, int] = field(default_factory=dict)
    """Agents that it reports but that do not count as its own (refused, or owned by another node) → digest."""
    disputed: dict[bytes, None] = field(default_factory=dict)
    """Those of them that are live at a node of another region."""
    refused: dict[bytes, str] = field(default_factory=dict)
    """Those of them whose state cannot be parsed → reason."""
    unstored: tuple[int, str] | None = None
    """(since when storing its reports fails, reason); None while it works."""
    ahead: tuple[int, int] | None = None
    """Its manifest, if that is newer than ours or from another database."""
    sender: SyncSender | None = None
    """Its Sync stream, while that is up."""
    manifest: tuple[int, int] | None = None
    policy_age_s: float | None = None
    rejected: list[dict[str, str]] = field(default_factory=list)
    rollup: link_pb2.Rollup | None = None
    halted: dict[str, str] = field(default_factory=dict)
    """Rollout → why the node reverted it on its own."""
    shards: Shards = field(default_factory=Shards)
    agents: set[bytes] = field(default_factory=set)
    turned_away: set[str] = field(default_factory=set)
    """Incarnations of other processes that tried to report under this name."""
    status_at: float = 0.0
    """When `policy_age_s` was reported, by the monotonic clock."""
    blobs: frozenset[str] = frozenset()
    """SHA-256 of the package files it serves."""
    blob_problems: dict[str, str] = field(default_factory=dict)
    """SHA-256 of files it should have but cannot get → reason."""
    key_set: int = 0
    """Version of the newest key set that it trusts; 0 for none."""
    behind_ms: int = 0
    """How far its clock is behind ours."""
    clock_is_off: bool = False
    """A warning about its clock was logged."""
    to_release: set[bytes] = field(default_factory=set)
    """Agents that moved to another node; this one has yet to be told."""
    key: str = field(init=False)
    """REGION/NAME."""

    def __post_init__(self) -> None:
        self.key = f"{self.region}/{self.name}"

    @property
    def connected(self) -> bool:
        """Whether its link is up."""
        return self.reporting > 0 or self.sender is not None

    @property
    def refusals(self) -> list[dict[str, str]]:
        """The parts of the policy that it rejects, including the policy as a whole."""
        sender = self.sender
        whole = sender.refused if sender is not None else ""
        return [*([{"name": "policy", "digest": "", "reason": whole}] if whole else []), *self.rejected]


def plain_reason(reason: str) -> str:
    """Return a rejection reason in one line. The oldest nodes send a raw validation error for fields they do not know."""
    unknown = _UNKNOWN_FIELD.findall(reason)
    return too_old_for(unknown) if unknown else reason
