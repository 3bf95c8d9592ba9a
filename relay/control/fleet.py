"""What nodes report of their agents: in the database, and in memory for quick answers (see `views`).

Owns the map of agents and the map of nodes. A report counts when it is written: memory changes after the commit, and the
acknowledgement goes after that.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import sqlalchemy as sa
from google.protobuf.message import DecodeError

from relay.aio.clock import Clock
from relay.control.configs import Configs
from relay.control.storage import schema
from relay.control.storage.database import Database, remove, replace
from relay.errors import Conflict, Duplicate, NotFound
from relay.fleet.facts import facts_of
from relay.fleet.ownership import Claim, winner
from relay.fleet.shards import Shards, difference, shard_of, state_digest
from relay.link.protocol import WINDOW, SyncSender
from relay.observe import log
from relay.observe.metrics import ControlPlaneMetrics
from relay.opamp import capabilities
from relay.opamp.offering import Offering
from relay.opamp.packages import PackageOffering
from relay.pb.opamp.v1 import opamp_pb2 as pb
from relay.pb.relay.v1 import link_pb2
from relay.policy.selector import Facts
from relay.policy.snapshot import CONFIG

_log = log.get("opamp-relay.fleet")
RECORD_TTL_MS = 30 * 86400 * 1000
"""How long the agents of a node that is away are remembered."""
_KEPT_CHARS = 300
_SILENT_NODE_S = 30.0
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
    """As selectors see it; made when first asked for, by `Fleet.facts_of`."""
    listed: tuple[tuple[frozenset[str], bool], str] | None = None
    """What it looks like in lists; see `views.listed`."""

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


class Fleet:
    """All nodes and all agents."""

    def __init__(self, database: Database, configs: Configs, *, clock: Clock, metrics: ControlPlaneMetrics) -> None:
        self._database = database
        self._configs = configs
        self._clock = clock
        self._metrics = metrics
        self.agents: dict[bytes, Agent] = {}
        self.nodes: dict[str, NodeState] = {}
        self._bodies: set[bytes] = set()
        """Digests of effective configs that are stored."""
        self._reporting = asyncio.Lock()

    async def load(self) -> None:
        """Read everything that was known."""
        async with self._database.read() as connection:
            for row in (await connection.execute(sa.select(schema.nodes))).all():
                trusted = json.loads(row.trusted)
                node = self._node(row.region, row.name)
                node.trusted = "all" if trusted == "all" else tuple(trusted)
                node.software_version, node.last_seen_ms = row.software_version, row.last_seen_ms
            for row in (await connection.execute(sa.select(schema.agents))).all():
                try:
                    self._put(_agent(row.instance_uid, row.state, self._node(row.region, row.node)))
                except DecodeError:
                    # Its node finds out by the digests, and sends it again.
                    _log.error("agent_unreadable", instance_uid=row.instance_uid.hex())
            digests = await connection.execute(sa.select(schema.effective_configs.c.digest))
            self._bodies = set(digests.scalars())

    def _node(self, region: str, name: str) -> NodeState:
        return self.nodes.setdefault(f"{region}/{name}", NodeState(region, name))

    def _put(self, agent: Agent) -> None:
        self._drop(agent.uid)
        node = self.nodes[agent.node]
        self.agents[agent.uid] = agent
        node.agents.add(agent.uid)
        node.shards.replace(agent.uid, 0, agent.digest)

    def _drop(self, uid: bytes) -> None:
        old = self.agents.pop(uid, None)
        if old is not None:
            node = self.nodes[old.node]
            node.agents.discard(uid)
            node.shards.replace(uid, old.digest, 0)

    def policy_age_s(self, node: NodeState) -> float | None:
        """How old the policy of a connected node is now, as far as it can be told; None where it cannot."""
        if node.policy_age_s is None or not node.connected:
            return None
        return node.policy_age_s + self._clock.monotonic() - node.status_at

    # ---- what the link brings (relay.link.server.ControlPlane)

    def node_synced(self, identity_: link_pb2.NodeIdentity, sender: SyncSender, up: bool) -> None:
        """A node's Sync stream came up or went down; an old one may go after the new one came."""
        node = self._node(identity_.region, identity_.name)
        if up:
            node.sender = sender
        elif node.sender is sender:
            node.sender = None

    async def node_reporting(self, identity_: link_pb2.NodeIdentity) -> None:
        """A node's Report stream came up; `node_gone` follows, unless this raises.

        Raises:
            Duplicate: another process reports under this region and name. Each would undo the other's agents.
            StoreError: it could not be written down.
        """
        node = self._node(identity_.region, identity_.name)
        if node.reporting and node.incarnation != identity_.incarnation:
            if identity_.incarnation not in node.turned_away:
                node.turned_away.add(identity_.incarnation)
                _log.error("duplicate_node", region=node.region, node=node.name)
            raise Duplicate(f"another node {node.region}/{node.name} is connected; every node needs a name of its own")
        node.reporting += 1
        node.last_seen_ms = self._clock.unix_ms()
        node.trusted = "all" if identity_.all_attributes_trusted else tuple(identity_.trusted_attributes)
        node.software_version = identity_.software_version
        node.incarnation = identity_.incarnation
        node.turned_away = set()
        for uid in node.agents:
            self.agents[uid].facts = self.agents[uid].listed = None
        try:
            await self._store_nodes([node])
        except BaseException:
            node.reporting -= 1
            raise
        _log.info("node_connected", region=node.region, node=node.name, version=node.software_version)

    def node_gone(self, identity_: link_pb2.NodeIdentity) -> None:
        """A Report stream for which `node_reporting` returned has ended."""
        node = self._node(identity_.region, identity_.name)
        node.reporting -= 1
        node.last_seen_ms = self._clock.unix_ms()
        if not node.reporting:
            node.rollup = None
            _log.warning("node_disconnected", region=node.region, node=node.name)

    async def save_seen(self) -> None:
        """Write when each node was last seen: now and then, and at the end."""
        await self._store_nodes(list(self.nodes.values()))

    async def _store_nodes(self, nodes: list[NodeState]) -> None:
        rows = [
            {
                "region": node.region,
                "name": node.name,
                "trusted": json.dumps(node.trusted),
                "software_version": node.software_version,
                "last_seen_ms": node.last_seen_ms,
            }
            for node in nodes
        ]
        async with self._database.write() as connection:
            await replace(connection, schema.nodes, rows)

    async def forget_node(self, region: str, name: str) -> None:
        """Forget a node that is away, and its agents.

        Raises:
            NotFound: nobody knows it.
            Conflict: it is connected.
        """
        node = self.nodes.get(f"{region}/{name}")
        if node is None:
            raise NotFound(f"there is no node {region}/{name}")
        async with self._reporting:
            if node.connected:
                raise Conflict(f"node {region}/{name} is connected")
            async with self._database.write() as connection:
                await remove(connection, schema.agents, [{"instance_uid": uid} for uid in node.agents])
                await remove(connection, schema.nodes, [{"region": region, "name": name}])
            for uid in list(node.agents):
                self._drop(uid)
            del self.nodes[f"{region}/{name}"]

    async def report(self, identity_: link_pb2.NodeIdentity, report: link_pb2.StatusReport) -> link_pb2.ReportAck:
        """Take in one report.

        Raises:
            StoreError: nothing of it counts; the node sends it again.
        """
        # One at a time: ownership is decided by what is in memory, which changes after the commit.
        async with self._reporting:
            return await self._report(self._node(identity_.region, identity_.name), report)

    async def _report(self, node: NodeState, report: link_pb2.StatusReport) -> link_pb2.ReportAck:
        self._metrics.reports += 1
        ack = link_pb2.ReportAck(sequence=report.sequence, window=WINDOW)
        key = f"{node.region}/{node.name}"
        accepted: list[Agent] = []
        for entry in report.agents:
            agent = _agent(entry.instance_uid, entry.state, node)
            held = self.agents.get(agent.uid)
            current = Claim(held.node, held.session_started_ms) if held is not None else None
            if winner(current, Claim(key, agent.session_started_ms)).node != key:
                ack.released.append(agent.uid)
                continue
            accepted.append(agent)
        removed = [uid for uid in report.removed if uid in self.agents and self.agents[uid].node == key]
        for listing in report.listings:
            mine = {u: self.agents[u].digest for u in node.agents if shard_of(u) == listing.shard}
            theirs = {a.instance_uid: a.digest for a in listing.agents}
            wanted, gone = difference(mine, theirs)
            ack.want_agents.extend(wanted)
            removed += gone
        await self._store(accepted, removed, report)
        for agent in accepted:
            held = self.agents.get(agent.uid)
            if held is not None and held.node != key:
                self.nodes[held.node].to_release.add(agent.uid)
            node.to_release.discard(agent.uid)
            if held is not None:
                agent.config.keep_baseline(held.config)
                if agent.packages is not None and held.packages is not None:
                    agent.packages.keep_baseline(held.packages)
            self._put(agent)
        for uid in removed:
            self._drop(uid)
        ack.want_effective_configs.extend(self._missing_bodies(accepted))
        if report.shards:
            differing = node.shards.differing(report.shards) if len(report.shards) == 256 else []
            self._metrics.shard_mismatches += len(differing)
            ack.list_shards.extend(differing)
        ack.released.extend(node.to_release)
        node.to_release = set()
        self._status(node, report)
        return ack

    async def _store(self, accepted: list[Agent], removed: list[bytes], report: link_pb2.StatusReport) -> None:
        bodies = [
            {"digest": item.digest, "body": item.body}
            for item in report.effective_configs
            if item.digest not in self._bodies
        ]
        if not accepted and not removed and not bodies:
            return
        rows = []
        for agent in accepted:
            region, _, name = agent.node.partition("/")
            rows.append(
                {
                    "instance_uid": agent.uid,
                    "agent_id": agent.agent_id[:512],
                    "region": region,
                    "node": name,
                    "state": agent.state,
                }
            )
        async with self._database.write() as connection:
            await replace(connection, schema.agents, rows)
            if removed:
                await remove(connection, schema.agents, [{"instance_uid": uid} for uid in removed])
            await replace(connection, schema.effective_configs, bodies)
            offered = ((a.config.hash, a.config.slots) for a in accepted)
            fresh = await self._configs.keep_offered(connection, offered, self._clock.unix_ms())
        self._configs.added(fresh)
        self._bodies.update(row["digest"] for row in bodies)

    def _missing_bodies(self, agents: list[Agent]) -> list[bytes]:
        digests = {d for a in agents for d in (a.effective_config_digest, a.components_digest)} - self._bodies
        return sorted(d for d in digests if d)

    def _status(self, node: NodeState, report: link_pb2.StatusReport) -> None:
        node.last_seen_ms = self._clock.unix_ms()
        if report.HasField("rollup"):
            node.rollup = report.rollup
        if report.HasField("status"):
            status = report.status
            node.manifest = (status.manifest.epoch, status.manifest.number) if status.HasField("manifest") else None
            node.status_at = self._clock.monotonic()
            node.blobs = frozenset(sha256.hex() for sha256 in status.blobs)
            node.blob_problems = {p.sha256.hex(): p.reason for p in status.blob_problems}
            node.behind_ms = self._clock.unix_ms() - status.unix_ms if status.unix_ms else 0
            node.policy_age_s = status.policy_age_s if status.policy_age_s >= 0 else None
            node.halted = {h.rollout: h.reason for h in status.halted}
            node.rejected = [{"name": r.name, "digest": r.digest.hex(), "reason": r.reason} for r in status.rejected]

    async def expire(self) -> None:
        """Forget agents of nodes that never came back, and effective configs that no agent has any more."""
        limit = self._clock.unix_ms() - RECORD_TTL_MS
        async with self._reporting:
            away = [n for n in self.nodes.values() if not n.connected and n.last_seen_ms < limit]
            gone = [uid for node in away for uid in node.agents]
            staying = [a for a in self.agents.values() if a.uid not in set(gone)]
            kept = {d for a in staying for d in (a.effective_config_digest, a.components_digest)}
            unused = self._bodies - kept
            async with self._database.write() as connection:
                for uid in gone:
                    await remove(connection, schema.agents, [{"instance_uid": uid}])
                for digest in unused:
                    await remove(connection, schema.effective_configs, [{"digest": digest}])
            for uid in gone:
                self._drop(uid)
            self._bodies -= unused

    def is_heard(self, node: NodeState) -> bool:
        """Whether a node's link is up and it has lately said something: nodes tell how they are every 10 s."""
        return node.connected and (not node.status_at or self._clock.monotonic() - node.status_at < _SILENT_NODE_S)

    def live_regions(self) -> set[str]:
        """Regions that have agents, or a node that is connected."""
        return {node.region for node in self.nodes.values() if node.agents or node.connected}

    def facts(self) -> Iterator[Facts]:
        """Every agent as selectors see it."""
        for agent in list(self.agents.values()):
            yield self.facts_of(agent)

    def facts_of(self, agent: Agent) -> Facts:
        """An agent as selectors see it."""
        if agent.facts is None:
            node = self.nodes[agent.node]
            state = link_pb2.AgentState.FromString(agent.state)
            agent.facts = facts_of(state.agent_description, agent.agent_id, node.region, node.trusted)
        return agent.facts

    async def _body(self, digest: bytes) -> bytes | None:
        query = sa.select(schema.effective_configs.c.body).where(schema.effective_configs.c.digest == digest)
        async with self._database.read() as connection:
            return (await connection.execute(query)).scalar_one_or_none()

    async def components(self, digest: bytes) -> pb.AvailableComponents:
        """The components that an agent listed; empty where the list has not arrived."""
        return pb.AvailableComponents.FromString(await self._body(digest) or b"")

    async def effective_config(self, agent: Agent) -> pb.EffectiveConfig:
        """What an agent reported to run.

        Raises:
            NotFound: it reported nothing, or the body is still on its way.
        """
        digest = agent.effective_config_digest
        if not digest:
            raise NotFound(f"{agent.agent_id} has reported no effective config")
        body = await self._body(digest)
        if body is None:
            raise NotFound(f"the effective config of {agent.agent_id} has not arrived yet; try again")
        return pb.EffectiveConfig.FromString(body)


def _agent(uid: bytes, state: bytes, node: NodeState) -> Agent:
    message = link_pb2.AgentState.FromString(state)
    health = pb.ComponentHealth.FromString(message.health) if message.HasField("health") else None
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
    )
    agent.config.take(message.config)
    if message.HasField("packages"):
        agent.packages = PackageOffering()
        agent.packages.take(message.packages)
    return agent
