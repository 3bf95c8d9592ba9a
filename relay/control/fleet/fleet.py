"""What nodes report of their agents: stored, then known (see `census`), then acknowledged.

A report counts when it is written: memory changes after the commit, and the acknowledgement goes after that.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from dataclasses import dataclass

from relay.aio.clock import Clock
from relay.aio.tasks import to_its_end
from relay.control.fleet.agents import Misplaced
from relay.control.fleet.bodies import Bodies
from relay.control.fleet.census import Census
from relay.control.fleet.intake import Intake, Reading
from relay.control.fleet.nodes import NodeState, plain_reason
from relay.control.fleet.records import Records, is_stale, row_of
from relay.control.ledger.change import Change, Entry, Removal
from relay.control.ledger.ledger import Ledger
from relay.control.regions.archive import Archive
from relay.control.storage import schema
from relay.control.storage.database import Database
from relay.errors import Conflict, Duplicate, NotFound, StoreError
from relay.link.protocol import WINDOW, Peer, SyncSender
from relay.observe import log
from relay.observe.metrics import ControlPlaneMetrics
from relay.pb.relay.v1 import link_pb2

_log = log.get("opamp-relay.fleet")
RECORD_TTL_MS = 30 * 86400 * 1000
"""How long the agents of a node that is away are remembered."""
_AGENTS_AT_ONCE = 500
"""Of the reports that one transaction takes in."""
_UNDER_WAY = 256
"""Reports of all nodes together, about."""
SKEW_MS = 5_000
"""A clock of a node that is further off is worth a warning."""


@dataclass(slots=True, eq=False)
class _Waiting:
    """A report that is to be taken in."""

    node: NodeState
    report: link_pb2.StatusReport
    ack: link_pb2.ReportAck | None = None
    """Once it is."""
    error: Exception | None = None
    """Why it could not be."""

    @property
    def said(self) -> set[bytes]:
        """Agents that it names; one with listings, which may concern any, is taken in alone."""
        report = self.report
        return {*(entry.instance_uid for entry in report.agents), *report.removed, *report.forgotten}


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
        self.census = Census(clock=clock)
        self.records = Records(database)
        self.bodies = Bodies(database)
        self._intake = Intake(self.census, self.bodies, clock=clock, metrics=metrics)
        self._waiting: deque[_Waiting] = deque()
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
            stale, misplaced = [], []
            for row in rows:
                try:
                    agent = self._intake.reader.read(
                        row.instance_uid, row.state, self.census.node(row.region, row.node)
                    )
                except ValueError as error:
                    # Its node finds out by the digests, and sends it again.
                    _log.error("row_unreadable", table="agents", key=row.instance_uid.hex(), error=str(error))
                    if isinstance(error, Misplaced):
                        misplaced.append(row.instance_uid)  # nobody will ever write this row again
                    continue
                if row.forgotten:
                    agent.forgotten, agent.connected = True, False
                self.census.put(agent)
                if is_stale(agent, row):
                    stale.append(row_of(agent, row.state))
            try:
                await self.records.mend(stale, misplaced)
            except StoreError as error:
                _log.error("rows_not_mended", table="agents", error=str(error))

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
            self._intake.reader.again(agent, node)
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
        self._metrics.reports += 1
        if report.HasField("status") and report.status.unix_ms:
            self._compare_clocks(node, report.status.unix_ms)  # before it waits for others
        mine = _Waiting(node, report)
        self._waiting.append(mine)
        try:
            # One at a time: ownership is decided by what is in memory, which changes after the commit. Who comes to it
            # takes in what others brought meanwhile too: a transaction costs as much as twenty agents.
            async with self._reporting:
                if mine.ack is None and mine.error is None:
                    # Also if this stream ends meanwhile: the reports of others are among them.
                    await to_its_end(self._take_in(self._next(mine)), name="take-in")
        finally:
            if mine in self._waiting:
                self._waiting.remove(mine)
        if mine.error is not None:
            if isinstance(mine.error, StoreError):
                self._unstored(node, str(mine.error))
            raise mine.error
        assert mine.ack is not None
        mine.ack.released.extend(node.to_release)
        node.to_release = set()
        node.unstored = None
        await self._status(node, report)
        return mine.ack

    def _next(self, mine: _Waiting) -> list[_Waiting]:
        """What one transaction takes in: a report, and others that wait behind it."""
        if mine in self._waiting:
            self._waiting.remove(mine)
        taken, agents = [mine], len(mine.report.agents)
        while self._waiting and not mine.report.listings and not self._waiting[0].report.listings:
            agents += len(self._waiting[0].report.agents)
            if agents > _AGENTS_AT_ONCE:
                break
            taken.append(self._waiting.popleft())
        return taken

    async def _take_in(self, waiting: list[_Waiting]) -> None:
        """Take in some reports, each after the one before. What is wrong with one is its own error."""
        while waiting:
            # Of two reports that say something of one agent, the second is read when the first is known.
            some: list[_Waiting] = []
            concerned: set[bytes] = set()
            while waiting and not waiting[0].said & concerned:
                some.append(waiting.pop(0))
                concerned |= some[-1].said
            try:
                await self._take_together(some)
            except Exception as error:
                if len(some) == 1:
                    some[0].error = error
                else:  # one of them may be what is wrong
                    for one in some:
                        await self._take_in([one])

    async def _take_together(self, some: list[_Waiting]) -> None:
        readings = []
        for one in some:
            readings.append(self._intake.read(one.node, one.report))
            await asyncio.sleep(0)
        await self._store(readings)
        for one, reading in zip(some, readings, strict=True):
            one.ack = self._intake.take(reading)
            one.ack.window = self._window()
            await asyncio.sleep(0)

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

    def _window(self) -> int:
        """How many reports a node may have under way: a few where there are many nodes, or each waits for all others'."""
        reporting = sum(1 for node in self.census.nodes.values() if node.reporting)
        return max(1, min(WINDOW, _UNDER_WAY // max(1, reporting)))

    async def _store(self, readings: list[Reading]) -> None:
        if not any(reading.changes for reading in readings):
            return
        bodies = {row["digest"]: row for reading in readings for row in reading.bodies}
        async with self._database.write() as connection:
            accepted = [pair for reading in readings for pair in reading.accepted.values()]
            await self.records.replace(connection, accepted)
            await self.records.remove(connection, [uid for reading in readings for uid in reading.removed])
            await self.records.forget(connection, [uid for reading in readings for uid in reading.forgotten])
            await self.bodies.store(connection, list(bodies.values()))
            offered = ((agent.config.hash, agent.config.slots) for agent, _ in accepted)
            fresh = await self._archive.keep_offered(connection, offered, self._clock.unix_ms())
        self._archive.added(fresh)
        self.bodies.added(bodies.values())

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
        limit_ms = self._clock.unix_ms() - RECORD_TTL_MS
        async with self._reporting:
            # In a thread: it goes through all agents, of which none comes or goes while this is ours.
            gone, unused = await asyncio.to_thread(self._expired, limit_ms)
            async with self._database.write() as connection:
                await self.records.remove(connection, gone)
                await self.bodies.remove(connection, unused)
            for uid in gone:
                self.census.drop(uid)
            self.bodies.removed(unused)

    def _expired(self, limit_ms: int) -> tuple[list[bytes], set[bytes]]:
        """(agents that nobody has heard of for too long, digests of bodies that none of the others has)."""
        nodes, agents = list(self.census.nodes.values()), list(self.census.agents.values())
        away = [n for n in nodes if not n.connected and n.last_seen_ms < limit_ms]
        gone = {uid for node in away for uid in node.agents}
        gone |= {a.uid for a in agents if a.forgotten and a.changed_ms < limit_ms}
        return list(gone), self.bodies.unused(a for a in agents if a.uid not in gone)
