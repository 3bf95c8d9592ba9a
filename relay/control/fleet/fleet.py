"""What nodes report of their agents: stored, then known (see `census`), then acknowledged.

A report counts when it is written: memory changes after the commit, and the acknowledgement goes after that.
"""

from __future__ import annotations

import asyncio
import json

from relay.aio.clock import Clock
from relay.control.fleet.agents import Agent, Reader
from relay.control.fleet.bodies import Bodies
from relay.control.fleet.census import Census
from relay.control.fleet.nodes import NodeState, plain_reason
from relay.control.fleet.records import Records, row_of
from relay.control.ledger.change import Change, Entry, Removal
from relay.control.ledger.ledger import Ledger
from relay.control.regions.archive import Archive
from relay.control.storage import schema
from relay.control.storage.database import Database
from relay.errors import Conflict, Duplicate, NotFound, StoreError
from relay.fleet.ownership import Holding, corrected, winner
from relay.fleet.shards import difference, shard_of, state_digest
from relay.link.protocol import WINDOW, Peer, SyncSender
from relay.observe import log
from relay.observe.metrics import ControlPlaneMetrics
from relay.pb.relay.v1 import link_pb2

_log = log.get("opamp-relay.fleet")
RECORD_TTL_MS = 30 * 86400 * 1000
"""How long the agents of a node that is away are remembered."""
_MOST_RELEASED = 100_000
SKEW_MS = 5_000
"""A clock of a node that is further off is worth a warning."""


class Fleet:
    """Takes what the link brings (`relay.link.server.Upstream`)."""

    def __init__(
        self, database: Database, ledger: Ledger, archive: Archive, *, clock: Clock, metrics: ControlPlaneMetrics
    ) -> None:
        self._database = database
        self._ledger = ledger
        self._archive = archive
        self._clock = clock
        self._metrics = metrics
        self._reader = Reader()
        self.census = Census(clock=clock)
        self.records = Records(database)
        self.bodies = Bodies(database)
        self._released: set[tuple[bytes, str, str]] = set()
        """(agent, node that lost it, node that has it): told once, or two clients of one uid would chase each other."""
        self._reporting = asyncio.Lock()

    async def load(self) -> None:
        """Read everything that was known."""
        await self.bodies.load()
        for row in await self.records.nodes():
            trusted = json.loads(row.trusted)
            node = self.census.node(row.region, row.name)
            node.trusted = "all" if trusted == "all" else tuple(trusted)
            node.software_version, node.last_seen_ms = row.software_version, row.last_seen_ms
            node.departed = row.departed
        async for rows in self.records.agents():
            stale = []
            for row in rows:
                try:
                    agent = self._reader.read(row.instance_uid, row.state, self.census.node(row.region, row.node))
                except ValueError as error:
                    # Its node finds out by the digests, and sends it again.
                    _log.error("row_unreadable", table="agents", key=row.instance_uid.hex(), error=str(error))
                    continue
                if row.forgotten:
                    agent.forgotten, agent.connected = True, False
                self.census.put(agent)
                if (now := row_of(agent, row.state)) != row._asdict():
                    stale.append(now)
            await self.records.renew(stale)

    def _put_aside(self, node: NodeState, uid: bytes, digest: int) -> None:
        """Count what a node reports of an agent that is not its own; 0: it no longer does. So its sums can be compared."""
        node.shards.replace(uid, node.aside.pop(uid, 0), digest)
        if digest:
            node.aside[uid] = digest
        else:
            node.refused.pop(uid, None)

    def node_synced(self, peer: Peer, sender: SyncSender, up: bool) -> None:
        """A node's Sync stream came up or went down; an old one may go after the new one came."""
        node = self.census.node(peer.region, peer.name)
        if up:
            node.sender = sender
        elif node.sender is sender:
            node.sender = None

    def node_ahead(self, peer: Peer, held: tuple[int, int] | None) -> None:
        """A node holds a manifest that this database never published; None: it does not."""
        node = self.census.node(peer.region, peer.name)
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
            await self._node_reporting(self.census.node(peer.region, peer.name), peer)

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
        if node.trusted != peer.trusted:
            node.trusted = peer.trusted
            self._trust_again(node)
        node.software_version = peer.software_version
        node.incarnation = peer.incarnation
        node.turned_away = set()
        try:
            await self.records.store_nodes([node])
        except BaseException as error:
            node.reporting -= 1
            if isinstance(error, StoreError):
                self._unstored(node, str(error))
            raise
        _log.info("node_connected", region=node.region, node=node.name, version=node.software_version)

    def _trust_again(self, node: NodeState) -> None:
        """Other attributes of a node's agents are labels than before."""
        for uid in list(node.agents):
            agent = self.census.agents[uid]
            self.census.drop(uid)
            self._reader.again(agent, node)
            self.census.put(agent)

    def node_gone(self, peer: Peer) -> None:
        """A Report stream for which `node_reporting` returned has ended."""
        node = self.census.node(peer.region, peer.name)
        node.reporting -= 1
        node.last_seen_ms = self._clock.unix_ms()
        if not node.reporting:
            node.verified = False
            node.rollup = None
            _log.warning("node_disconnected", region=node.region, node=node.name)

    async def save_seen(self) -> None:
        """Write when each node was last seen: now and then, and at the end."""
        await self.records.store_nodes(list(self.census.nodes.values()))

    async def forget_node(self, region: str, name: str, *, actor: str) -> None:
        """Forget a node that is away, and its agents. No truth of the ledger's, but somebody did it: it is audited.

        Raises:
            NotFound: nobody knows it.
            Conflict: it is connected.
        """
        async with self._reporting:
            node = self.census.nodes.get(f"{region}/{name}")
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
            self.census.forget_node(node)
            if node.sender is not None:  # it is coming back: its other stream is up already
                self.census.node(region, name).sender = node.sender

    async def report(self, peer: Peer, report: link_pb2.StatusReport) -> link_pb2.ReportAck:
        """Take in one report.

        Raises:
            StoreError: nothing of it counts; the node sends it again.
        """
        node = self.census.node(peer.region, peer.name)
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
        accepted, aside = self._read(node, report, ack)
        agents = self.census.agents
        removed = [uid for uid in report.removed if uid in agents and agents[uid].node == node.key]
        forgotten = [uid for uid in report.forgotten if uid in node.agents]
        by_shard = self._by_shard(node, {listing.shard for listing in report.listings})
        removing = set(removed)
        for listing in report.listings:
            theirs = {a.instance_uid: a.digest for a in listing.agents}
            wanted, gone = difference(by_shard[listing.shard], theirs)
            ack.want_agents.extend(wanted)
            # Its data may be new, under an old name: what it has not removed itself stays known.
            forgotten += [uid for uid in gone if uid in node.agents and uid not in removing]
            aside += [(uid, 0) for uid in gone if uid in node.aside]
        aside += [(uid, 0) for uid in (*report.removed, *report.forgotten)]
        trusted = node.trusted
        await self._store(accepted, removed, forgotten, report)
        for agent, _ in accepted:
            if node.trusted != trusted:
                self._reader.again(agent, node)
            self._take(node, agent)
        for uid in removed:
            self.census.drop(uid)
        for uid in forgotten:
            left = agents[uid]
            self.census.drop(uid)
            left.forgotten, left.connected = True, False
            self.census.put(left)
        for uid, digest in aside:
            if digest and uid in node.agents:  # what is known of it is not what its node counts
                node.shards.replace(uid, agents[uid].digest, 0)
                agents[uid].digest = 0
            self._put_aside(node, uid, digest)
        ack.want_effective_configs.extend(self.bodies.missing(agent for agent, _ in accepted))
        if report.shards:
            differing = node.shards.differing(report.shards) if len(report.shards) == 256 else []
            self._metrics.shard_mismatches += len(differing)
            ack.list_shards.extend(differing)
            node.verified = not differing
        ack.released.extend(node.to_release)
        node.to_release = set()
        await self._status(node, report)
        return ack

    def _read(
        self, node: NodeState, report: link_pb2.StatusReport, ack: link_pb2.ReportAck
    ) -> tuple[list[tuple[Agent, bytes]], list[tuple[bytes, int]]]:
        """([(agent, its state)] that are the node's own, [(uid, digest)] that do not count as its own)."""
        now_ms = self._clock.unix_ms()
        accepted: dict[bytes, tuple[Agent, bytes]] = {}
        aside: list[tuple[bytes, int]] = []
        for entry in report.agents:
            try:
                agent = self._reader.read(entry.instance_uid, entry.state, node)
            except ValueError as error:
                self._refuse(node, entry.instance_uid, str(error))
                aside.append((entry.instance_uid, state_digest(entry.instance_uid, entry.state)))
                continue
            agent.started_ms = corrected(agent.session_started_ms, node.behind_ms, now_ms)
            agent.stream = node.streams
            if self._belongs_to(node, agent, ack):
                accepted[agent.uid] = agent, entry.state
            else:
                aside.append((agent.uid, agent.digest))
        return list(accepted.values()), aside

    def _take(self, node: NodeState, agent: Agent) -> None:
        """An agent that a node reported is its own, and stored."""
        held = self.census.agents.get(agent.uid)
        if held is not None and held.node != node.key:
            self._lose(held, node.key)
        node.to_release.discard(agent.uid)
        if held is not None:
            self._reader.keep_baseline(agent, held)
        self._put_aside(node, agent.uid, 0)
        self.census.put(agent)

    def _by_shard(self, node: NodeState, shards: set[int]) -> dict[int, dict[bytes, int]]:
        """What a node is known to report, of some shards: uid → digest."""
        found: dict[int, dict[bytes, int]] = {shard: {} for shard in shards}
        if not shards:
            return found
        for uid in node.agents:
            if shard_of(uid) in found and not self.census.agents[uid].forgotten:
                found[shard_of(uid)][uid] = self.census.agents[uid].digest
        for uid, digest in node.aside.items():
            if shard_of(uid) in found:
                found[shard_of(uid)][uid] = digest
        return found

    def _belongs_to(self, node: NodeState, agent: Agent, ack: link_pb2.ReportAck) -> bool:
        """Whether an agent is the node's that reports it; a node that is to let go of it is told so, once for a pair."""
        key = node.key
        held = self.census.agents.get(agent.uid)
        if held is None:
            return True
        owner = self.census.nodes[held.node]
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
        loser = self.census.nodes[held.node]
        pair = (held.uid, held.node, winner_key)
        if not held.connected or pair not in self._released:
            loser.to_release.add(held.uid)
            self._remember_release(pair)
        if not held.forgotten:
            # Until it lets go of it, it goes on counting it.
            self.census.drop(held.uid)
            self._put_aside(loser, held.uid, held.digest)

    def _remember_release(self, pair: tuple[bytes, str, str]) -> None:
        if len(self._released) >= _MOST_RELEASED:
            self._released.clear()
        self._released.add(pair)

    def _refuse(self, node: NodeState, uid: bytes, reason: str) -> None:
        self._metrics.agents_refused += 1
        if uid not in node.refused:
            _log.error("agent_refused", node=node.key, instance_uid=uid.hex(), reason=reason)
        node.refused[uid] = reason

    async def _store(
        self,
        accepted: list[tuple[Agent, bytes]],
        removed: list[bytes],
        forgotten: list[bytes],
        report: link_pb2.StatusReport,
    ) -> None:
        bodies = self.bodies.fresh(report.effective_configs)
        if not accepted and not removed and not forgotten and not bodies:
            return
        async with self._database.write() as connection:
            await self.records.replace(connection, accepted)
            await self.records.remove(connection, removed)
            await self.records.forget(connection, forgotten)
            await self.bodies.store(connection, bodies)
            offered = ((agent.config.hash, agent.config.slots) for agent, _ in accepted)
            fresh = await self._archive.keep_offered(connection, offered, self._clock.unix_ms())
        self._archive.added(fresh)
        self.bodies.added(bodies)

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
                await self.records.store_nodes([node])
                _log.info("node_says_goodbye", region=node.region, node=node.name)

    async def expire(self) -> None:
        """Forget agents of nodes that never came back, and bodies that no agent has any more."""
        limit = self._clock.unix_ms() - RECORD_TTL_MS
        census = self.census
        async with self._reporting:
            away = [n for n in census.nodes.values() if not n.connected and n.last_seen_ms < limit]
            gone = [uid for node in away for uid in node.agents]
            gone += [a.uid for a in census.agents.values() if a.forgotten and a.changed_ms < limit]
            leaving = set(gone)
            unused = self.bodies.unused(a for a in census.agents.values() if a.uid not in leaving)
            async with self._database.write() as connection:
                await self.records.remove(connection, gone)
                await self.bodies.remove(connection, unused)
            for uid in gone:
                census.drop(uid)
            self.bodies.removed(unused)
