"""One node as it is known."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from relay.fleet.facts import Trusted
from relay.fleet.shards import Shards
from relay.link.protocol import SyncSender
from relay.pb.relay.v1 import link_pb2
from relay.policy.snapshot import too_old_for

_UNKNOWN_FIELD = re.compile(r"([\w.]+)\s*;?\s+Extra inputs are not permitted")


@dataclass(slots=True, eq=False)
class NodeState:
    """One node as it is known."""

    region: str
    name: str
    trusted: Trusted = ()
    software_version: str = ""
    incarnation: str = ""
    last_seen_ms: int = 0
    reporting: int = 0
    """Report streams that are up; more than one while an old one dies."""
    streams: int = 0
    """Counts its Report streams."""
    verified: bool = False
    """Since its Report stream came up both ends were found to hold the same agents in the same states."""
    departed: bool = False
    """It said goodbye."""
    aside: dict[bytes, int] = field(default_factory=dict)
    """Agents that it reports and that do not count as its own → their digests: refused, or of another node."""
    refused: dict[bytes, str] = field(default_factory=dict)
    """Of them: those whose state cannot be read → why."""
    unstored: tuple[int, str] | None = None
    """(since when its reports are not stored, why); None while they are."""
    ahead: tuple[int, int] | None = None
    """The manifest that it holds, where that is newer than ours or of another database."""
    sender: SyncSender | None = None
    """Its Sync stream, while up."""
    manifest: tuple[int, int] | None = None
    policy_age_s: float | None = None
    rejected: list[dict[str, str]] = field(default_factory=list)
    rollup: link_pb2.Rollup | None = None
    halted: dict[str, str] = field(default_factory=dict)
    """Rollout → why the node took it back by itself."""
    shards: Shards = field(default_factory=Shards)
    agents: set[bytes] = field(default_factory=set)
    turned_away: set[str] = field(default_factory=set)
    """Incarnations of other processes that tried to report under this name."""
    status_at: float = 0.0
    """When `policy_age_s` was told."""
    blobs: frozenset[str] = frozenset()
    """SHA-256 of package files that can be downloaded from it."""
    blob_problems: dict[str, str] = field(default_factory=dict)
    """SHA-256 of files that it should have and cannot get → why."""
    behind_ms: int = 0
    """How far its clock is behind ours."""
    clock_is_off: bool = False
    """By so much that people were told."""
    to_release: set[bytes] = field(default_factory=set)
    """Agents that moved away and that the node has yet to be told of."""
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
        """What of the policy it does not take, the policy as a whole among it."""
        sender = self.sender
        whole = sender.refused if sender is not None else ""
        return [*([{"name": "policy", "digest": "", "reason": whole}] if whole else []), *self.rejected]


def plain_reason(reason: str) -> str:
    """Why a node rejects something, in one line. The first nodes had no words for what is newer than they are."""
    unknown = _UNKNOWN_FIELD.findall(reason)
    return too_old_for(unknown) if unknown else reason
