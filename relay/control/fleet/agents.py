"""One agent and one node as they were reported. Owned by `relay.control.fleet`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from google.protobuf.message import DecodeError

from relay.fleet.facts import labels_of
from relay.fleet.rollup import status_name
from relay.fleet.shards import Shards, state_digest
from relay.link.protocol import SyncSender
from relay.opamp import capabilities, identity
from relay.opamp.offering import FAILED, Offering
from relay.opamp.packages import PackageOffering
from relay.pb.opamp.v1 import opamp_pb2 as pb
from relay.pb.relay.v1 import link_pb2
from relay.policy.published import CONFIG
from relay.policy.selector import Facts
from relay.policy.snapshot import too_old_for

_KEPT_CHARS = 300
_UNKNOWN_FIELD = re.compile(r"([\w.]+)\s*;?\s+Extra inputs are not permitted")
Trusted = Literal["all"] | tuple[str, ...]


@dataclass(slots=True)
class Agent:
    """One agent as its node reported it."""

    uid: bytes
    agent_id: str
    node: str
    """REGION/NAME."""
    connected: bool
    session_started_ms: int
    state: bytes
    digest: int
    effective_config_digest: bytes
    components_digest: bytes = b""
    config: Offering = field(default_factory=Offering)
    """What config it was last offered, and what became of it."""
    packages: PackageOffering | None = None
    """What packages; None for never any."""
    healthy: bool | None = None
    last_error: str = ""
    changed_ms: int = 0
    capabilities: int = 0
    facts: Facts | None = None
    """As selectors see it; None where that depends on what its node has said since. Ask `Fleet.facts_of`."""
    status: str = "UNSET"
    """What has become of its config, as people see it."""
    listed: tuple[tuple[frozenset[str], bool | None], str] | None = None
    """What it looks like in lists; see `views.listed`."""
    started_ms: int = 0
    """When its session began, by our clock."""
    forgotten: bool = False
    """It left, and its node holds no record of it any more."""
    stream: int = 0
    """The Report stream of its node that last told of it; see `NodeState.streams`."""

    def is_like(self, other: Agent) -> bool:
        """Whether nothing differs that decides whose agent it is, and what may be offered to it."""
        return (
            self.facts is not None
            and self.facts == other.facts
            and (self.agent_id, self.node, self.connected, self.capabilities, self.session_started_ms, self.forgotten)
            == (
                other.agent_id,
                other.node,
                other.connected,
                other.capabilities,
                other.session_started_ms,
                other.forgotten,
            )
        )

    def offering(self, kind: str) -> Offering:
        """What it was last offered by assignments of a kind."""
        return self.config if kind == CONFIG else self.packages or _NEVER

    def accepts(self, kind: str) -> bool:
        """Whether it takes what assignments of a kind offer."""
        bit = capabilities.ACCEPTS_REMOTE_CONFIG if kind == CONFIG else capabilities.ACCEPTS_PACKAGES
        return bool(self.capabilities & bit)

    def reports(self, kind: str) -> bool:
        """Whether it tells what became of it."""
        bit = capabilities.REPORTS_REMOTE_CONFIG if kind == CONFIG else capabilities.REPORTS_PACKAGE_STATUSES
        return bool(self.capabilities & bit)


_NEVER = PackageOffering()
"""Of an agent that was never offered packages; never changed."""


@dataclass(slots=True)
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

    @property
    def connected(self) -> bool:
        """Whether its link is up."""
        return self.reporting > 0 or self.sender is not None

    @property
    def refusals(self) -> list[dict[str, str]]:
        """What of the policy it does not take, the policy as a whole among it."""
        whole = self.sender.refused if self.sender is not None else ""
        return [*([{"name": "policy", "digest": "", "reason": whole}] if whole else []), *self.rejected]


def plain_reason(reason: str) -> str:
    """Why a node rejects something, in one line. The first nodes had no words for what is newer than they are."""
    unknown = _UNKNOWN_FIELD.findall(reason)
    return too_old_for(unknown) if unknown else reason


def read_agent(uid: bytes, state: bytes, node: NodeState) -> Agent:
    """Take a state apart, all of it: what cannot be read later must not be accepted now.

    Raises:
        ValueError: it is not valid.
    """
    try:
        message = link_pb2.AgentState.FromString(state)
        health = pb.ComponentHealth.FromString(message.health) if message.HasField("health") else None
        attributes = identity.attributes(message.agent_description)
        status = pb.RemoteConfigStatus.FromString(message.remote_config_status)
        pb.PackageStatuses.FromString(message.package_statuses)
        pb.CustomCapabilities.FromString(message.custom_capabilities)
        pb.AvailableComponents.FromString(message.available_components)
        pb.ConnectionSettingsStatus.FromString(message.connection_settings_status)
    except (DecodeError, RecursionError) as error:
        raise ValueError(f"its state cannot be read: {error}") from None
    if message.instance_uid != uid:
        raise ValueError("its state belongs to another agent")
    agent = Agent(
        uid,
        message.agent_id,
        f"{node.region}/{node.name}",
        message.connected,
        message.session_started_unix_ms,
        state,
        state_digest(uid, state),
        message.effective_config_digest,
        components_digest=message.components_digest,
        healthy=health.healthy if health is not None else None,
        last_error=health.last_error[:_KEPT_CHARS] if health is not None else "",
        changed_ms=message.last_change_unix_ms,
        capabilities=message.capabilities,
        facts=Facts(message.agent_id, labels_of(attributes, node.region, node.trusted), attributes),
        started_ms=message.session_started_unix_ms,
    )
    agent.config.take(message.config)
    agent.status = FAILED if agent.config.failure is not None else status_name(status.status)
    if message.HasField("packages"):
        agent.packages = PackageOffering()
        agent.packages.take(message.packages)
    return agent
