"""Handling of reports: each is stored, then entered in the census, then acknowledged.

A report counts once it is stored: memory changes after the commit, and the acknowledgement follows.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from dataclasses import dataclass

from relay.aio.clock import Clock
from relay.aio.tasks import run_to_completion
from relay.control.access.actor import Actor
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
from relay.errors import Conflict, Duplicate, Forbidden, NotFound, StoreError
from relay.link.protocol.peer import WINDOW, Peer
from relay.link.protocol.sender import SyncSender
from relay.observe import log
from relay.observe.metrics import ControlPlaneMetrics
from relay.pb.relay.v1 import link_pb2

_log = log.get("opamp-relay.fleet")
RECORD_TTL_MS = 30 * 86400 * 1000
"""How long the agents of an absent node are kept."""
_SILENT_S = 15.0
"""A node that says nothing for so long may be replaced by another process; it reports every second."""
_MAX_SUPERSEDED = 1_000
_BATCH_AGENTS = 500
"""The most agents whose reports share a transaction."""
_IN_FLIGHT = 256
"""About how many reports all nodes together may have in flight."""
SKEW_MS = 5_000
"""A larger clock skew of a node is worth a warning."""


@dataclass(slots=True, eq=False)
class _Queued:
    """A report in the queue."""

    node: NodeState
    report: link_pb2.StatusReport
    ack: link_pb2.ReportAck | None = None
    """Set once the report is stored."""
    error: Exception | None = None
    """Why it could not be stored."""

    @property
    def uids(self) -> set[bytes]:
        """Agents that the report names. A report with listings may concern any agent, so it is processed alone."""
        report = self.report
        return {*(entry.instance_uid for entry in report.agents), *report.removed, *report.forgotten}


class Fleet:
    """Handles what arrives over the link (`relay.link.server.Upstream`)."""

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
        self._queue: deque[_Queued] = deque()
        self._reporting = asyncio.Lock()

    async def load(self) -> None:
        """Load all nodes and agents from the database."""
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
                    # The digests tell its node, which sends it again.
                    _log.error("row_unreadable", table="agents", key=row.instance_uid.hex(), error=str(error))
                    if isinstance(error, Misplaced):
                        misplaced.append(row.instance_uid)  # no node will ever write this row again
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
        """Handle a Sync stream that came up or went down. An old stream may end after its successor came up."""
        node = self.census.node(peer.region, peer.name)
        if up:
            node.sender = sender
        elif node.sender is sender:
            node.sender = None

    def node_ahead(self, peer: Peer, manifest: tuple[int, int] | None) -> None:
        """Record that a node has a manifest that this database never published, or with None that it has not."""
        node = self.census.node(peer.region, peer.name)
        if manifest is not None and node.ahead != manifest:
            _log.error("node_ahead", region=node.region, node=node.name, manifest=manifest)
        node.ahead = manifest

    async def node_reporting(self, peer: Peer) -> None:
        """Handle a Report stream that came up. Unless this raises, `node_gone` follows.

        Raises:
            Duplicate: another process reports under this region and name. Each would overwrite the other's agents.
            StoreError: the node could not be stored.
        """
        # Wait for a `forget_node` that is running: otherwise it would remove the node right after it came up.
        async with self._reporting:
            await self._node_reporting(self.census.node(peer.region, peer.name), peer)

    async def _node_reporting(self, node: NodeState, peer: Peer) -> None:
        self.admit(peer)
        node.reporting += 1
        node.streams += 1
        node.verified = node.departed = False
        node.last_seen_ms = self._clock.unix_ms()
        if node.trusted != peer.trusted:
            node.trusted = peer.trusted
            self._trust_again(node)
        node.software_version = peer.software_version
        try:
            await self.records.store_nodes([node])
        except BaseException as error:
            node.reporting -= 1
            if isinstance(error, StoreError):
                self._mark_unstored(node, str(error))
            raise
        _log.info("node_connected", region=node.region, node=node.name, version=node.software_version)

    def admit(self, peer: Peer) -> None:
        """Let a process be the node that it says it is: the newest one, if its store is the same as before.

        Raises:
            Duplicate: another process with another store is connected as this node. Each would overwrite the other's agents.
        """
        node = self.census.node(peer.region, peer.name)
        is_other = node.connected and node.incarnation not in ("", peer.incarnation)
        is_copy = peer.incarnation in node.superseded  # it is still there, so the newer one is no restart of it
        is_restart = bool(peer.installation) and peer.installation == node.installation and not is_copy
        is_silent = self._clock.monotonic() - node.heard_at >= _SILENT_S
        if is_other and not is_restart and not is_silent:
            if peer.incarnation not in node.turned_away:
                node.turned_away.add(peer.incarnation)
                _log.error("duplicate_node", region=node.region, node=node.name)
            raise Duplicate(
                f"another node is already connected as {node.region}/{node.name}; every node needs its own name"
            )
        if node.incarnation != peer.incarnation:
            if len(node.superseded) >= _MAX_SUPERSEDED:
                node.superseded.clear()
            node.superseded.add(node.incarnation)
            node.turned_away = set()
        node.incarnation, node.installation = peer.incarnation, peer.installation
        node.heard_at = self._clock.monotonic()

    def _trust_again(self, node: NodeState) -> None:
        """Update the agents of a node whose trusted attributes changed."""
        for uid in list(node.agents):
            agent = self.census.agents[uid]
            self.census.drop(uid)
            self._intake.reader.update_trust(agent, node)
            self.census.put(agent)

    def node_gone(self, peer: Peer) -> None:
        """Handle the end of a Report stream for which `node_reporting` returned."""
        node = self.census.node(peer.region, peer.name)
        node.reporting -= 1
        node.last_seen_ms = self._clock.unix_ms()
        if not node.reporting:
            node.verified = False
            node.rollup = None
            _log.warning("node_disconnected", region=node.region, node=node.name)

    async def save_seen(self) -> None:
        """Store when each node was last seen. Called periodically and at shutdown."""
        await self.records.store_nodes(list(self.census.nodes.values()))

    async def forget_node(self, region: str, name: str, *, actor: Actor) -> None:
        """Forget an absent node and its agents. This is no state of the ledger, but an operator's action, so it is audited.

        Raises:
            NotFound: the node is unknown.
            Conflict: it is connected.
        """
        async with self._reporting:
            if actor.grants is not None and not actor.grants.has({"region": region}):
                raise Forbidden(f"node {region}/{name} serves agents outside your scope")
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
            if node.sender is not None:  # it is coming back: its Sync stream is already up
                self.census.node(region, name).sender = node.sender

    async def report(self, peer: Peer, report: link_pb2.StatusReport) -> link_pb2.ReportAck:
        """Store a report and apply it.

        Raises:
            StoreError: nothing was stored; the node sends the report again.
        """
        node = self.census.node(peer.region, peer.name)
        self._metrics.reports += 1
        node.heard_at = self._clock.monotonic()
        if report.HasField("status") and report.status.unix_ms:
            self._compare_clocks(node, report.status.unix_ms)  # now, before the report waits in the queue
        mine = _Queued(node, report)
        self._queue.append(mine)
        try:
            # One at a time: ownership depends on the census, which changes after the commit. Whoever gets the lock also
            # processes the reports queued meanwhile: a transaction costs as much as twenty agents.
            async with self._reporting:
                if mine.ack is None and mine.error is None:
                    # Finish even if this stream ends meanwhile: the batch has reports of other nodes.
                    await run_to_completion(self._process(self._next(mine)), name="take-in")
        finally:
            if mine in self._queue:
                self._queue.remove(mine)
        if mine.error is not None:
            if isinstance(mine.error, StoreError):
                self._mark_unstored(node, str(mine.error))
            raise mine.error
        assert mine.ack is not None
        mine.ack.released.extend(node.to_release)
        node.to_release = set()
        node.unstored = None
        await self._status(node, report)
        return mine.ack

    def _next(self, mine: _Queued) -> list[_Queued]:
        """Dequeue the reports for one transaction: this one, and some of those behind it."""
        if mine in self._queue:
            self._queue.remove(mine)
        batch, agents = [mine], len(mine.report.agents)
        while self._queue and not mine.report.listings and not self._queue[0].report.listings:
            agents += len(self._queue[0].report.agents)
            if agents > _BATCH_AGENTS:
                break
            batch.append(self._queue.popleft())
        return batch

    async def _process(self, waiting: list[_Queued]) -> None:
        """Process reports in order. An error affects only the report that caused it."""
        while waiting:
            # If two reports name the same agent, the second must be read after the first was applied.
            batch: list[_Queued] = []
            uids: set[bytes] = set()
            while waiting and not waiting[0].uids & uids:
                batch.append(waiting.pop(0))
                uids |= batch[-1].uids
            try:
                await self._process_batch(batch)
            except Exception as error:
                if len(batch) == 1:
                    batch[0].error = error
                else:  # a single report may be the cause
                    for one in batch:
                        await self._process([one])

    async def _process_batch(self, batch: list[_Queued]) -> None:
        readings = []
        for one in batch:
            readings.append(self._intake.read(one.node, one.report))
            await asyncio.sleep(0)
        await self._store(readings)
        for one, reading in zip(batch, readings, strict=True):
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

    def _mark_unstored(self, node: NodeState, reason: str) -> None:
        since_ms = node.unstored[0] if node.unstored is not None else self._clock.unix_ms()
        node.unstored = (since_ms, reason)

    def _window(self) -> int:
        """How many reports a node may have in flight. It shrinks with the number of nodes, as each waits for all others."""
        reporting = sum(1 for node in self.census.nodes.values() if node.reporting)
        return max(1, min(WINDOW, _IN_FLIGHT // max(1, reporting)))

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
            configs = ((agent.config.hash, agent.config.slots) for agent, _ in accepted)
            fresh = await self._archive.keep_offered(connection, configs, self._clock.unix_ms())
        self._archive.mark_stored(fresh)
        self.bodies.mark_added(bodies.values())

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
            node.key_set = status.key_set
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
        """Forget agents of nodes that never came back, and bodies that no agent uses any more."""
        limit_ms = self._clock.unix_ms() - RECORD_TTL_MS
        async with self._reporting:
            # In a thread, because it visits all agents. None comes or goes while the lock is held.
            expired, unused = await asyncio.to_thread(self._expired, limit_ms)
            async with self._database.write() as connection:
                await self.records.remove(connection, expired)
                await self.bodies.remove(connection, unused)
            for uid in expired:
                self.census.drop(uid)
            self.bodies.mark_removed(unused)

    def _expired(self, limit_ms: int) -> tuple[list[bytes], set[bytes]]:
        """Return (agents that were last reported too long ago, digests of bodies that no other agent uses)."""
        nodes, agents = list(self.census.nodes.values()), list(self.census.agents.values())
        absent = [n for n in nodes if not n.connected and n.last_seen_ms < limit_ms]
        expired = {uid for node in absent for uid in node.agents}
        expired |= {a.uid for a in agents if a.forgotten and a.changed_ms < limit_ms}
        return list(expired), self.bodies.unused(a for a in agents if a.uid not in expired)
