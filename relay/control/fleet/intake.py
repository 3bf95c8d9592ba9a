"""Reading a report against the census, and applying it once it is stored."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

from relay.aio.clock import Clock
from relay.auth.throttle import Throttle
from relay.control.fleet.agents import Agent, Reader
from relay.control.fleet.bodies import Bodies
from relay.control.fleet.census import Census
from relay.control.fleet.nodes import NodeState
from relay.fleet.facts import Trusted
from relay.fleet.ownership import Holding, corrected, winner
from relay.fleet.shards import COUNT, difference, shard_of, state_digest
from relay.observe import log
from relay.observe.metrics import ControlPlaneMetrics
from relay.pb.relay.v1 import link_pb2

_log = log.get("opamp-relay.fleet")
_MAX_RELEASED = 100_000
_SETTLED_AT_ONCE = 500
_GRACE_S = 120.0
"""So long after a node was last heard, another region cannot take its connected agents."""


@dataclass(slots=True)
class Reading:
    """The changes that a report asks for, not yet applied."""

    node: NodeState
    report: link_pb2.StatusReport
    ack: link_pb2.ReportAck
    trusted: Trusted
    """The trusted attributes its agents were read with."""
    accepted: dict[bytes, tuple[Agent, bytes]] = field(default_factory=dict)
    """Agents that belong to the node, each with its state."""
    aside: list[tuple[bytes, int]] = field(default_factory=list)
    """(uid, digest) of agents that it reports but that do not count as its own; 0 if it no longer reports the agent."""
    removed: list[bytes] = field(default_factory=list)
    forgotten: list[bytes] = field(default_factory=list)
    bodies: list[dict[str, object]] = field(default_factory=list)
    """Rows of effective configs that are not stored yet."""

    @property
    def changes(self) -> bool:
        """Whether there is anything to store."""
        return bool(self.accepted or self.removed or self.forgotten or self.bodies)


class Intake:
    """Reads reports, and applies them once stored. The caller must not process two reports on one agent at once."""

    def __init__(self, census: Census, bodies: Bodies, *, clock: Clock, metrics: ControlPlaneMetrics) -> None:
        self._census = census
        self._bodies = bodies
        self._clock = clock
        self._metrics = metrics
        self.reader = Reader()
        self._disputes = Throttle()
        self._released: set[tuple[bytes, str, str]] = set()
        """(agent, node that lost it, node that has it). Sent once each, or two clients with one uid would swap forever."""

    def read(self, node: NodeState, report: link_pb2.StatusReport) -> Reading:
        """Work out the changes that a report asks for, given the current census."""
        reading = Reading(node, report, link_pb2.ReportAck(sequence=report.sequence), node.trusted)
        self._read_agents(reading)
        agents = self._census.agents
        reading.removed = [uid for uid in report.removed if uid in agents and agents[uid].node == node.key]
        reading.forgotten = [uid for uid in report.forgotten if uid in node.agents]
        reading.bodies = self._bodies.new_rows(report.effective_configs)
        by_shard = self._by_shard(node, {listing.shard for listing in report.listings})
        removing = set(reading.removed)
        for listing in report.listings:
            listed = {a.instance_uid: a.digest for a in listing.agents}
            differing, absent = difference(by_shard[listing.shard], listed)
            reading.ack.want_agents.extend(differing)
            # The node may have started with an empty store under its old name, so an absent agent is only forgotten.
            reading.forgotten += [uid for uid in absent if uid in node.agents and uid not in removing]
            reading.aside += [(uid, 0) for uid in absent if uid in node.aside]
        reading.aside += [(uid, 0) for uid in (*report.removed, *report.forgotten)]
        reading.ack.want_agents.extend(self._settled(reading))
        return reading

    def _read_agents(self, reading: Reading) -> None:
        node, now_ms = reading.node, self._clock.unix_ms()
        for entry in reading.report.agents:
            try:
                agent = self.reader.read(entry.instance_uid, entry.state, node)
            except ValueError as error:
                self._refuse(node, entry.instance_uid, str(error))
                reading.aside.append((entry.instance_uid, state_digest(entry.instance_uid, entry.state)))
                continue
            agent.started_ms = corrected(agent.session_started_ms, node.behind_ms, now_ms)
            agent.stream = node.streams
            if self._belongs_to(node, agent, reading.ack):
                reading.accepted[agent.uid] = agent, entry.state
            else:
                reading.aside.append((agent.uid, agent.digest))

    def take(self, reading: Reading) -> link_pb2.ReportAck:
        """Apply a report that is stored, and return its acknowledgement."""
        node, report, ack, census = reading.node, reading.report, reading.ack, self._census
        for agent, _ in reading.accepted.values():
            if node.trusted != reading.trusted:
                self.reader.update_trust(agent, node)
            self._put_agent(node, agent)
        for uid in reading.removed:
            census.drop(uid)
        for uid in reading.forgotten:
            departed = census.drop(uid)
            if departed is not None:
                departed.forgotten, departed.connected = True, False
                census.put(departed)
        for uid, digest in reading.aside:
            if digest and uid in node.agents:  # our state of it is not what its node counts
                node.shards.replace(uid, census.agents[uid].digest, 0)
                census.agents[uid].digest = 0
            self._put_aside(node, uid, digest)
        ack.want_effective_configs.extend(self._bodies.missing(agent for agent, _ in reading.accepted.values()))
        if report.shards:
            differing = node.shards.differing(report.shards) if len(report.shards) == COUNT else []
            self._metrics.shard_mismatches += len(differing)
            ack.list_shards.extend(differing)
            node.verified = not differing
        return ack

    def _put_agent(self, node: NodeState, agent: Agent) -> None:
        old = self._census.agents.get(agent.uid)
        if old is not None and old.node != node.key:
            self._lose(old, node.key)
        node.to_release.discard(agent.uid)
        if old is not None:
            self.reader.keep_baseline(agent, old)
        self._put_aside(node, agent.uid, 0)
        self._census.put(agent)

    def _put_aside(self, node: NodeState, uid: bytes, digest: int) -> None:
        """Count an agent that a node reports but does not own, so that shard digests still compare; digest 0 removes it."""
        node.shards.replace(uid, node.aside.pop(uid, 0), digest)
        if digest:
            node.aside[uid] = digest
        else:
            node.refused.pop(uid, None)

    def _by_shard(self, node: NodeState, shards: set[int]) -> dict[int, dict[bytes, int]]:
        """What a node reports in some shards, as far as we know: shard → uid → digest."""
        digests: dict[int, dict[bytes, int]] = {shard: {} for shard in shards}
        if not shards:
            return digests
        agents = self._census.agents
        for uid in node.agents:
            if shard_of(uid) in digests and not agents[uid].forgotten:
                digests[shard_of(uid)][uid] = agents[uid].digest
        for uid, digest in node.aside.items():
            if shard_of(uid) in digests:
                digests[shard_of(uid)][uid] = digest
        return digests

    def _belongs_to(self, node: NodeState, agent: Agent, ack: link_pb2.ReportAck) -> bool:
        """Whether an agent belongs to the node that reports it. If not, the node is told to release it, once per pair."""
        existing = self._census.agents.get(agent.uid)
        if existing is None:
            return True
        is_elsewhere = existing.node != node.key and not existing.forgotten
        holder = self._census.nodes[existing.node]
        is_far = is_elsewhere and holder.region != node.region
        is_other_subject = is_elsewhere and existing.owner and existing.owner != agent.owner
        if is_far and (is_other_subject or (agent.connected and self._is_live_at(holder, existing, agent))):
            # A region's node may be hostile: it harms its own region's agents at most.
            self._dispute(node, agent.uid, existing.node)
            return False
        if is_other_subject:
            ack.released.append(agent.uid)  # another subject's agent, under a uid that is taken
            return False
        current = Holding(
            existing.node, existing.started_ms, existing.connected and not existing.forgotten and holder.connected
        )
        if (is_far and agent.connected) or winner(
            current, Holding(node.key, agent.started_ms, agent.connected)
        ).node == node.key:
            return True
        pair = (agent.uid, node.key, existing.node)
        if not agent.connected or pair not in self._released:
            ack.released.append(agent.uid)
            self._remember_release(pair)
        return False

    def _is_live_at(self, holder: NodeState, existing: Agent, newcomer: Agent) -> bool:
        """Whether an agent that a node of another region reports is still live where it was.

        Who was away for a moment is not robbed; and of two sessions that last, the older one is the agent's: one that really
        moves ends its session where it was.
        """
        if not existing.connected or existing.forgotten or holder.departed:
            return False
        is_back = holder.connected or self._clock.monotonic() - holder.heard_at < _GRACE_S
        return is_back and existing.started_ms <= newcomer.started_ms

    def _dispute(self, node: NodeState, uid: bytes, holder: str) -> None:
        if uid in node.disputed:
            return
        node.disputed[uid] = None
        self._metrics.claims_disputed += 1
        more = self._disputes.passing(node.key, self._clock.monotonic())
        if more is not None:
            _log.warning("claim_disputed", node=node.key, instance_uid=uid.hex(), live_at=holder, suppressed=more)

    def _settled(self, reading: Reading) -> list[bytes]:
        """Agents that a node reports and that are no longer live elsewhere: it should report them again."""
        node, now = reading.node, dict(reading.aside)
        settled = []
        for uid in list(itertools.islice(node.disputed, _SETTLED_AT_ONCE)):
            del node.disputed[uid]
            existing = self._census.agents.get(uid)
            holder = self._census.nodes[existing.node] if existing is not None else None
            is_reported = bool(now.get(uid, node.aside.get(uid)))
            if not is_reported:
                continue
            if existing is not None and holder is not None and self._is_live_at(holder, existing, existing):
                node.disputed[uid] = None  # behind the others
            else:
                settled.append(uid)
        return settled

    def _lose(self, agent: Agent, winner_key: str) -> None:
        """Handle an agent that moved to another node."""
        loser, taker = self._census.nodes[agent.node], self._census.nodes[winner_key]
        pair = (agent.uid, agent.node, winner_key)
        is_told = loser.region == taker.region or not agent.connected  # another region closes nobody's connection
        if is_told and (not agent.connected or pair not in self._released):
            loser.to_release.add(agent.uid)
            self._remember_release(pair)
        if not agent.forgotten:
            # The loser still counts it until it releases it.
            self._census.drop(agent.uid)
            self._put_aside(loser, agent.uid, agent.digest)

    def _remember_release(self, pair: tuple[bytes, str, str]) -> None:
        if len(self._released) >= _MAX_RELEASED:
            self._released.clear()
        self._released.add(pair)

    def _refuse(self, node: NodeState, uid: bytes, reason: str) -> None:
        self._metrics.agents_refused += 1
        if uid not in node.refused:
            _log.error("agent_refused", node=node.key, instance_uid=uid.hex(), reason=reason)
        node.refused[uid] = reason
