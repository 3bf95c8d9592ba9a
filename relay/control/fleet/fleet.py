"""What nodes report of their agents: in the database, and in memory for quick answers (see `views`).

Owns the map of agents and the map of nodes. A report counts when it is written: memory changes after the commit, and the
acknowledgement goes after that.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import sqlalchemy as sa
from google.protobuf.message import DecodeError

from relay.aio.clock import Clock
from relay.control.fleet.agents import Agent, NodeState, plain_reason, read_agent
from relay.control.ledger.change import Change, Entry, Removal
from relay.control.ledger.ledger import Ledger
from relay.control.regions.archive import Archive
from relay.control.storage import schema
from relay.control.storage.database import Database
from relay.control.storage.rows import remove, replace
from relay.control.storage.sealed import read_all
from relay.errors import Conflict, Duplicate, NotFound, StoreError
from relay.fleet.facts import facts_of
from relay.fleet.ownership import Holding, corrected, winner
from relay.fleet.shards import difference, shard_of, state_digest
from relay.link.protocol import WINDOW, Peer, SyncSender
from relay.observe import log
from relay.observe.metrics import ControlPlaneMetrics
from relay.pb.opamp.v1 import opamp_pb2 as pb
from relay.pb.relay.v1 import link_pb2
from relay.policy.selector import Facts

_log = log.get("opamp-relay.fleet")
RECORD_TTL_MS = 30 * 86400 * 1000
"""How long the agents of a node that is away are remembered."""
_SILENT_NODE_S = 15.0
_GONE_AFTER_MS = 15 * 60 * 1000
_MOST_RELEASED = 100_000
SKEW_MS = 5_000
"""A clock of a node that is further off is worth a warning."""


class Fleet:
    """All nodes and all agents."""

    def __init__(
        self, database: Database, ledger: Ledger, archive: Archive, *, clock: Clock, metrics: ControlPlaneMetrics
    ) -> None:
        self._database = database
        self._ledger = ledger
        self._archive = archive
        self._clock = clock
        self._metrics = metrics
        self.agents: dict[bytes, Agent] = {}
        self.edition = 0
        """Another number whenever an agent has come, gone, or become another: in what `Agent.is_like` compares."""
        self.nodes: dict[str, NodeState] = {}
        self._bodies: set[bytes] = set()
        """Digests of effective configs that are stored."""
        self._released: set[tuple[bytes, str, str]] = set()
        """(agent, node that lost it, node that has it): told once, or two clients of one uid would chase each other."""
        self._reporting = asyncio.Lock()

    async def load(self) -> None:
        """Read everything that was known."""
        async with self._database.read() as connection:
            rows, damaged = await read_all(connection, schema.agents)
            for key in damaged:
                # Its node finds out by the digests, and sends it again.
                _log.error("row_damaged", table="agents", key=key)
            nodes, damaged = await read_all(connection, schema.nodes)
            for key in damaged:
                # It tells all of this again when it comes.
                _log.error("row_damaged", table="nodes", key=key)
            for row in nodes:
                trusted = json.loads(row.trusted)
                node = self._node(row.region, row.name)
                node.trusted = "all" if trusted == "all" else tuple(trusted)
                node.software_version, node.last_seen_ms = row.software_version, row.last_seen_ms
                node.departed = row.departed
            for row in rows:
                try:
                    agent = read_agent(row.instance_uid, row.state, self._node(row.region, row.node))
                except ValueError as error:
                    # Its node finds out by the digests, and sends it again.
                    _log.error("row_unreadable", table="agents", key=row.instance_uid.hex(), error=str(error))
                else:
                    agent.forgotten = row.forgotten
                    self._put(agent)
            digests = await connection.execute(sa.select(schema.effective_configs.c.digest))
            self._bodies = set(digests.scalars())

    def _node(self, region: str, name: str) -> NodeState:
        return self.nodes.setdefault(f"{region}/{name}", NodeState(region, name))

    def _put(self, agent: Agent) -> None:
        before = self._take_out(agent.uid)
        if before is None or not before.is_like(agent):
            self.edition += 1
        node = self.nodes[agent.node]
        self.agents[agent.uid] = agent
        node.agents.add(agent.uid)
        if not agent.forgotten:
            node.shards.replace(agent.uid, 0, agent.digest)

    def _drop(self, uid: bytes) -> None:
        if self._take_out(uid) is not None:
            self.edition += 1

    def _take_out(self, uid: bytes) -> Agent | None:
        old = self.agents.pop(uid, None)
        if old is not None:
            node = self.nodes[old.node]
            node.agents.discard(uid)
            if not old.forgotten:
                node.shards.replace(uid, old.digest, 0)
        return old

    def _put_aside(self, node: NodeState, uid: bytes, digest: int) -> None:
        """Count what a node reports of an agent that is not its own; 0: it no longer does. So its sums can be compared."""
        node.shards.replace(uid, node.aside.pop(uid, 0), digest)
        if digest:
            node.aside[uid] = digest
        else:
            node.refused.pop(uid, None)

    def policy_age_s(self, node: NodeState) -> float | None:
        """How old the policy of a connected node is now, as far as it can be told; None where it cannot."""
        if node.policy_age_s is None or not node.connected:
            return None
        return node.policy_age_s + self._clock.monotonic() - node.status_at

    # ---- what the link brings (relay.link.server.Upstream)

    def node_synced(self, peer: Peer, sender: SyncSender, up: bool) -> None:
        """A node's Sync stream came up or went down; an old one may go after the new one came."""
        node = self._node(peer.region, peer.name)
        if up:
            node.sender = sender
        elif node.sender is sender:
            node.sender = None

    def node_ahead(self, peer: Peer, held: tuple[int, int] | None) -> None:
        """A node holds a manifest that this database never published; None: it does not."""
        node = self._node(peer.region, peer.name)
        if held is not None and node.ahead != held:
            _log.error("node_ahead", region=node.region, node=node.name, manifest=held)
        node.ahead = held

    async def node_reporting(self, peer: Peer) -> None:
        """A node's Report stream came up; `node_gone` follows, unless this raises.

        Raises:
            Duplicate: another process reports under this region and name. Each would undo the other's agents.
            StoreError: it could not be written down.
        """
        # Behind whoever forgets a node: else it would come up as one that is forgotten a moment later.
        async with self._reporting:
            await self._node_reporting(self._node(peer.region, peer.name), peer)

    async def _node_reporting(self, node: NodeState, peer: Peer) -> None:
        if node.reporting and node.incarnation != peer.incarnation:
            if peer.incarnation not in node.turned_away:
                node.turned_away.add(peer.incarnation)
                _log.error("duplicate_node", region=node.region, node=node.name)
            raise Duplicate(
                f"another node {node.region}/{node.name} is connected with this name; every node needs its own"
            )
        node.reporting += 1
        node.streams += 1
        node.verified = node.departed = False
        node.last_seen_ms = self._clock.unix_ms()
        node.trusted = peer.trusted
        node.software_version = peer.software_version
        node.incarnation = peer.incarnation
        node.turned_away = set()
        for uid in node.agents:
            self.agents[uid].facts = self.agents[uid].listed = None
        self.edition += 1
        try:
            await self._store_nodes([node])
        except BaseException as error:
            node.reporting -= 1
            if isinstance(error, StoreError):
                self._unstored(node, str(error))
            raise
        _log.info("node_connected", region=node.region, node=node.name, version=node.software_version)

    def node_gone(self, peer: Peer) -> None:
        """A Report stream for which `node_reporting` returned has ended."""
        node = self._node(peer.region, peer.name)
        node.reporting -= 1
        node.last_seen_ms = self._clock.unix_ms()
        if not node.reporting:
            node.verified = False
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
                "departed": node.departed,
            }
            for node in nodes
        ]
        async with self._database.write() as connection:
            await replace(connection, schema.nodes, rows)

    async def forget_node(self, region: str, name: str, *, actor: str) -> None:
        """Forget a node that is away, and its agents. No truth of the ledger's, but somebody did it: it is audited.

        Raises:
            NotFound: nobody knows it.
            Conflict: it is connected.
        """
        async with self._reporting:
            node = self.nodes.get(f"{region}/{name}")
            if node is None:
                raise NotFound(f"there is no node {region}/{name}")
            if node.connected:
                raise Conflict(f"node {region}/{name} is connected")
            removals = [
                Removal(schema.agents, [{"instance_uid": uid} for uid in node.agents]),
                Removal(schema.nodes, [{"region": region, "name": name}]),
            ]
            reason = f"{len(node.agents)} agents"
            entry = Entry("forget", f"Node/{region}/{name}", reason=reason)
            await self._ledger.change(actor, lambda state, _: Change(state, None, entries=[entry], removals=removals))
            for uid in list(node.agents):
                self._drop(uid)
            del self.nodes[f"{region}/{name}"]
            if node.sender is not None:  # it is coming back: its other stream is up already
                self._node(region, name).sender = node.sender

    async def report(self, peer: Peer, report: link_pb2.StatusReport) -> link_pb2.ReportAck:
        """Take in one report.

        Raises:
            StoreError: nothing of it counts; the node sends it again.
        """
        node = self._node(peer.region, peer.name)
        if report.HasField("status") and report.status.unix_ms:
            self._compare_clocks(node, report.status.unix_ms)  # before it waits for others
        try:
            # One at a time: ownership is decided by what is in memory, which changes after the commit.
            async with self._reporting:
                ack = await self._report(node, report)
        except StoreError as error:
            self._unstored(node, str(error))
            raise
        node.unstored = None
        return ack

    def _compare_clocks(self, node: NodeState, unix_ms: int) -> None:
        node.behind_ms = self._clock.unix_ms() - unix_ms
        if abs(node.behind_ms) > SKEW_MS and not node.clock_is_off:
            node.clock_is_off = True
            _log.warning("node_clock_off", region=node.region, node=node.name, behind_s=node.behind_ms / 1000)
        elif abs(node.behind_ms) < SKEW_MS / 2:
            node.clock_is_off = False

    def _unstored(self, node: NodeState, reason: str) -> None:
        since_ms = node.unstored[0] if node.unstored is not None else self._clock.unix_ms()
        node.unstored = (since_ms, reason)

    async def _report(self, node: NodeState, report: link_pb2.StatusReport) -> link_pb2.ReportAck:
        self._metrics.reports += 1
        ack = link_pb2.ReportAck(sequence=report.sequence, window=WINDOW)
        key, now_ms = f"{node.region}/{node.name}", self._clock.unix_ms()
        accepted: list[Agent] = []
        aside: list[tuple[bytes, int]] = []
        for entry in report.agents:
            digest = state_digest(entry.instance_uid, entry.state)
            try:
                agent = read_agent(entry.instance_uid, entry.state, node)
            except ValueError as error:
                self._refuse(node, entry.instance_uid, str(error))
                aside.append((entry.instance_uid, digest))
                continue
            agent.started_ms = corrected(agent.session_started_ms, node.behind_ms, now_ms)
            agent.stream = node.streams
            if self._belongs_to(node, agent, key, ack):
                accepted.append(agent)
            else:
                aside.append((agent.uid, digest))
        removed = [uid for uid in report.removed if uid in self.agents and self.agents[uid].node == key]
        forgotten = [uid for uid in report.forgotten if uid in node.agents]
        by_shard = self._by_shard(node, {listing.shard for listing in report.listings})
        removing = set(removed)
        for listing in report.listings:
            mine = by_shard[listing.shard]
            theirs = {a.instance_uid: a.digest for a in listing.agents}
            wanted, gone = difference(mine, theirs)
            ack.want_agents.extend(wanted)
            # Its data may be new, under an old name: what it has not removed itself stays known.
            forgotten += [uid for uid in gone if uid in node.agents and uid not in removing]
            aside += [(uid, 0) for uid in gone if uid in node.aside]
        aside += [(uid, 0) for uid in (*report.removed, *report.forgotten)]
        trusted = node.trusted
        await self._store(accepted, removed, forgotten, report)
        for agent in accepted:
            if node.trusted != trusted:
                agent.facts = None
            held = self.agents.get(agent.uid)
            if held is not None and held.node != key:
                self._lose(held, key)
            node.to_release.discard(agent.uid)
            if held is not None:
                agent.config.keep_baseline(held.config)
                if agent.packages is not None and held.packages is not None:
                    agent.packages.keep_baseline(held.packages)
            self._put_aside(node, agent.uid, 0)
            self._put(agent)
        for uid in removed:
            self._drop(uid)
        for uid in forgotten:
            left = self.agents[uid]
            self._drop(uid)
            left.forgotten, left.connected, left.listed = True, False, None
            self._put(left)
        for uid, digest in aside:
            if digest and uid in node.agents:  # what is known of it is not what its node counts
                node.shards.replace(uid, self.agents[uid].digest, 0)
                self.agents[uid].digest = 0
            self._put_aside(node, uid, digest)
        ack.want_effective_configs.extend(self._missing_bodies(accepted))
        if report.shards:
            differing = node.shards.differing(report.shards) if len(report.shards) == 256 else []
            self._metrics.shard_mismatches += len(differing)
            ack.list_shards.extend(differing)
            node.verified = not differing
        ack.released.extend(node.to_release)
        node.to_release = set()
        await self._status(node, report)
        return ack

    def _by_shard(self, node: NodeState, shards: set[int]) -> dict[int, dict[bytes, int]]:
        """What a node is known to report, of some shards: uid → digest."""
        found: dict[int, dict[bytes, int]] = {shard: {} for shard in shards}
        if not shards:
            return found
        for uid in node.agents:
            if shard_of(uid) in found and not self.agents[uid].forgotten:
                found[shard_of(uid)][uid] = self.agents[uid].digest
        for uid, digest in node.aside.items():
            if shard_of(uid) in found:
                found[shard_of(uid)][uid] = digest
        return found

    def _belongs_to(self, node: NodeState, agent: Agent, key: str, ack: link_pb2.ReportAck) -> bool:
        """Whether an agent is the node's that reports it; a node that is to let go of it is told so, once for a pair."""
        held = self.agents.get(agent.uid)
        if held is None:
            return True
        owner = self.nodes[held.node]
        current = Holding(held.node, held.started_ms, held.connected and not held.forgotten and owner.connected)
        if winner(current, Holding(key, agent.started_ms, agent.connected)).node == key:
            return True
        pair = (agent.uid, key, held.node)
        if not agent.connected or pair not in self._released:
            ack.released.append(agent.uid)
            self._remember_release(pair)
        return False

    def _lose(self, held: Agent, winner_key: str) -> None:
        """A node lost an agent to another one."""
        loser = self.nodes[held.node]
        pair = (held.uid, held.node, winner_key)
        if not held.connected or pair not in self._released:
            loser.to_release.add(held.uid)
            self._remember_release(pair)
        if not held.forgotten:
            # Until it lets go of it, it goes on counting it.
            self._drop(held.uid)
            self._put_aside(loser, held.uid, held.digest)

    def _remember_release(self, pair: tuple[bytes, str, str]) -> None:
        if len(self._released) >= _MOST_RELEASED:
            self._released.clear()
        self._released.add(pair)

    def _refuse(self, node: NodeState, uid: bytes, reason: str) -> None:
        self._metrics.agents_refused += 1
        if uid not in node.refused:
            _log.error("agent_refused", node=f"{node.region}/{node.name}", instance_uid=uid.hex(), reason=reason)
        node.refused[uid] = reason

    async def _store(
        self, accepted: list[Agent], removed: list[bytes], forgotten: list[bytes], report: link_pb2.StatusReport
    ) -> None:
        bodies = [
            {"digest": item.digest, "body": item.body}
            for item in report.effective_configs
            if item.digest not in self._bodies
        ]
        if not accepted and not removed and not forgotten and not bodies:
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
                    "forgotten": False,
                }
            )
        async with self._database.write() as connection:
            await replace(connection, schema.agents, rows)
            if removed:
                await remove(connection, schema.agents, [{"instance_uid": uid} for uid in removed])
            if forgotten:
                table = schema.agents
                await connection.execute(
                    sa.update(table).where(table.c.instance_uid.in_(forgotten)).values(forgotten=True)
                )
            await replace(connection, schema.effective_configs, bodies)
            offered = ((a.config.hash, a.config.slots) for a in accepted)
            fresh = await self._archive.keep_offered(connection, offered, self._clock.unix_ms())
        self._archive.added(fresh)
        self._bodies.update(row["digest"] for row in bodies)

    def _missing_bodies(self, agents: list[Agent]) -> list[bytes]:
        digests = {d for a in agents for d in (a.effective_config_digest, a.components_digest)} - self._bodies
        return sorted(d for d in digests if d)

    async def _status(self, node: NodeState, report: link_pb2.StatusReport) -> None:
        node.last_seen_ms = self._clock.unix_ms()
        if report.HasField("rollup"):
            node.rollup = report.rollup
        if report.HasField("status"):
            status = report.status
            node.manifest = (status.manifest.epoch, status.manifest.number) if status.HasField("manifest") else None
            node.status_at = self._clock.monotonic()
            node.blobs = frozenset(sha256.hex() for sha256 in status.blobs)
            node.blob_problems = {p.sha256.hex(): p.reason for p in status.blob_problems}
            node.policy_age_s = status.policy_age_s if status.policy_age_s >= 0 else None
            node.halted = {h.rollout: h.reason for h in status.halted}
            node.rejected = [
                {"name": r.name, "digest": r.digest.hex(), "reason": plain_reason(r.reason)} for r in status.rejected
            ]
            if status.leaving:
                node.departed = True
                await self._store_nodes([node])
                _log.info("node_says_goodbye", region=node.region, node=node.name)

    async def expire(self) -> None:
        """Forget agents of nodes that never came back, and effective configs that no agent has any more."""
        limit = self._clock.unix_ms() - RECORD_TTL_MS
        async with self._reporting:
            away = [n for n in self.nodes.values() if not n.connected and n.last_seen_ms < limit]
            gone = [uid for node in away for uid in node.agents]
            gone += [a.uid for a in self.agents.values() if a.forgotten and a.changed_ms < limit]
            leaving = set(gone)
            staying = [a for a in self.agents.values() if a.uid not in leaving]
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
        """Whether a node reports, has spoken lately, and holds what we hold.

        It says how it is every few seconds; both ends are compared after its stream came up.
        """
        fresh = self._clock.monotonic() - node.status_at < _SILENT_NODE_S
        return node.reporting > 0 and node.verified and fresh

    def is_gone(self, node: NodeState) -> bool:
        """Whether nobody need wait for a node: it said goodbye, or is away for long while another of its region is up."""
        if node.connected:
            return False
        away_ms = self._clock.unix_ms() - node.last_seen_ms
        return node.departed or (
            away_ms >= _GONE_AFTER_MS and any(n.connected for n in self.nodes.values() if n.region == node.region)
        )

    def connected(self, agent: Agent) -> bool | None:
        """Whether an agent is connected; None where nobody knows.

        Nobody does while its node's link is down, and after that until the node has reported it or both ends were compared.
        """
        node = self.nodes[agent.node]
        if not node.reporting or node.unstored is not None:
            return None
        return agent.connected if node.verified or agent.stream == node.streams else None

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

    async def effective_config_of(self, digits: str) -> pb.EffectiveConfig | None:
        """The effective config whose digest begins so; None where no agent reported one, or it is damaged."""
        digest = next((d for d in self._bodies if d.hex().startswith(digits)), None)
        try:
            body = await self._body(digest) if digest is not None else None
            return pb.EffectiveConfig.FromString(body) if body is not None else None
        except (StoreError, DecodeError) as error:
            _log.error("row_damaged", table="effective_configs", key=digits, error=str(error))
            return None

    async def components(self, digest: bytes) -> pb.AvailableComponents:
        """The components that an agent listed; empty where the list has not arrived, or is damaged."""
        try:
            return pb.AvailableComponents.FromString(await self._body(digest) or b"")
        except (StoreError, DecodeError) as error:
            _log.error("row_damaged", table="effective_configs", key=digest.hex(), error=str(error))
            return pb.AvailableComponents()

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
            raise NotFound(f"the effective config of {agent.agent_id} has not arrived yet; try again later")
        return pb.EffectiveConfig.FromString(body)
