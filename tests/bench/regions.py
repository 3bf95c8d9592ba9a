"""Nodes that only report: the real end of the link, and behind it agents that exist as numbers.

Each node takes the policy of its region and decides by it, as nodes do; its agents apply what they are offered at once.
Their states are made when they are asked for. Commands come on stdin, one a line:

- `acks`: how long reports took to be acknowledged since the last time: `{"event": "acks", "n", "p99_ms", "max_ms"}`.

Says `{"event": "taken", "seconds"}` when the control plane has acknowledged all agents.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from relay.aio.clock import SystemClock
from relay.aio.tasks import Tasks
from relay.fleet.shards import Shards, shard_of, state_digest
from relay.ids import sha256
from relay.link.client import Downward, LinkClient, Upward
from relay.link.health import LinkHealth
from relay.link.protocol import Candidate, Peer, ReportSender, SyncReceiver, version_message
from relay.observe import log
from relay.observe.metrics import NodeMetrics
from relay.opamp import capabilities
from relay.opamp.offer import OfferedSlot
from relay.opamp.offering import APPLIED, Offering
from relay.pb.opamp.v1 import opamp_pb2 as pb
from relay.pb.relay.v1 import link_pb2
from relay.policy.evaluate import NOTHING, Decision, Evaluator
from relay.policy.selector import Facts
from relay.policy.snapshot import RENDERERS, build

TRUSTED = ("deployment.environment", "tier")
CAPABILITIES = 0x1 | 0x2 | 0x4 | 0x800 | 0x1000
BATCH, GATHER_S, TELL_S = 100, 0.1, 1.0
HEALTH = pb.ComponentHealth(healthy=True, status="StatusOK").SerializeToString()


@dataclass(slots=True)
class Given:
    """What some agents are given, as their states say it."""

    offering: link_pb2.Offering
    status: bytes | None


def given(decision: Decision, now_ms: int) -> Given:
    offering = Offering()
    if decision is NOTHING:
        return Given(offering.message(), None)
    slots = tuple(OfferedSlot(c.slot, c.assignment.published.name, c.content_hash) for c in decision.choices)
    offering.offer(decision.config_hash, slots, True)
    offering.said(decision.config_hash, APPLIED, "")
    offering.stamp(now_ms)
    status = pb.RemoteConfigStatus(
        last_remote_config_hash=decision.config_hash, status=pb.RemoteConfigStatuses_APPLIED
    ).SerializeToString()
    return Given(offering.message(), status)


class TimedSender(ReportSender):
    """Notes how long each report took to be acknowledged."""

    def __init__(self, took: list[float]) -> None:
        super().__init__(max_agents=BATCH)
        self._took = took
        self._sent: dict[int, float] = {}

    def note(self, sequence: int) -> None:
        self._sent[sequence] = time.perf_counter()

    def acknowledged(self, ack: link_pb2.ReportAck) -> None:
        if ack.sequence in self._sent:
            self._took.append(time.perf_counter() - self._sent.pop(ack.sequence))
        super().acknowledged(ack)


class Region:
    """One node and its agents."""

    def __init__(self, name: str, agents: int, metrics: NodeMetrics, took: list[float]) -> None:
        clock = SystemClock()
        self.name = name
        self._began_ms = clock.unix_ms()
        self._clock = clock
        self._numbers = {sha256(f"{name}/{i}".encode())[:16]: i for i in range(agents)}
        self._digests: dict[bytes, int] = {}
        self._common = self._description()
        self._given = {NOTHING.hashes: given(NOTHING, 0)}
        self._mine = [NOTHING.hashes] * agents
        self.shards = Shards()
        self.taken = asyncio.Event()
        """All agents are known above, and both ends were found to agree."""
        self.receiver = SyncReceiver(name, {}, None)
        self.sender = TimedSender(took)
        for uid in self._numbers:
            self.sender.change(uid)
        peer = Peer(name, "node", str(time.time_ns()), "bench", TRUSTED)
        down = Downward(self.receiver, RENDERERS, self._put_in_force, lambda: None)
        up = Upward(self.sender, self._next, lambda uid: None, GATHER_S)
        self.link = LinkClient("127.0.0.1:4330", peer, down, up, LinkHealth(clock), clock=clock, metrics=metrics)

    def _attributes(self, name: str) -> dict[str, str]:
        return {
            "service.instance.id": name,
            "host.name": f"host-{name}",
            "service.name": "otelcol-contrib",
            "service.version": "0.115.0",
            "os.type": "linux",
            "os.description": "Debian GNU/Linux 12 (bookworm)",
            "host.arch": "amd64",
            "cloud.region": self.name,
            "deployment.environment": "production",
            "tier": "edge",
        }

    def _description(self) -> bytes:
        """That of all agents, without what only one has."""
        description = pb.AgentDescription()
        for key, value in list(self._attributes("").items())[2:]:
            identifying = key.startswith("service.")
            where = description.identifying_attributes if identifying else description.non_identifying_attributes
            where.add(key=key).value.string_value = value
        return description.SerializeToString()

    def _own(self, name: str) -> bytes:
        description = pb.AgentDescription()
        description.identifying_attributes.add(key="service.instance.id").value.string_value = name
        description.non_identifying_attributes.add(key="host.name").value.string_value = f"host-{name}"
        return description.SerializeToString()

    def state(self, uid: bytes) -> bytes:
        number = self._numbers[uid]
        name = f"{self.name}-{number:06}"
        mine = self._given[self._mine[number]]
        message = link_pb2.AgentState(
            instance_uid=uid,
            agent_id=name,
            connected=True,
            transport="websocket",
            session_started_unix_ms=self._began_ms + number,
            first_seen_unix_ms=self._began_ms + number,
            last_change_unix_ms=max(self._began_ms + number, mine.offering.offered_at_unix_ms),
            capabilities=CAPABILITIES,
            agent_description=self._common + self._own(name),
            health=HEALTH,
            config=mine.offering,
        )
        if mine.status is not None:
            message.remote_config_status = mine.status
        state = message.SerializeToString()
        digest = state_digest(uid, state)
        self.shards.replace(uid, self._digests.get(uid, 0), digest)
        self._digests[uid] = digest
        return state

    async def _put_in_force(self, candidate: Candidate) -> link_pb2.SyncRequest:
        snapshot = await asyncio.to_thread(build, candidate.resources)
        evaluator = Evaluator(snapshot)
        for uid, number in self._numbers.items():
            if number % 1000 == 999:
                await asyncio.sleep(0)
            name = f"{self.name}-{number:06}"
            attributes = self._attributes(name)
            labels = {key: attributes[key] for key in TRUSTED} | {"region": self.name}
            key = evaluator.key(Facts(name, labels, attributes), CAPABILITIES & capabilities.DECIDING)
            decision = evaluator.decide_once(key)
            if decision.hashes != self._mine[number] and decision is not NOTHING:
                if decision.hashes not in self._given:
                    self._given[decision.hashes] = given(decision, self._clock.unix_ms())
                self._mine[number] = decision.hashes
                self.sender.change(uid)
        self.link.wake()
        outcome = self.receiver.outcome(candidate, snapshot.rejected, snapshot.needed, snapshot.salvaged)
        return self.receiver.accept(outcome)

    def _listings(self, shards: Collection[int]) -> Mapping[int, Mapping[bytes, int]]:
        found: dict[int, dict[bytes, int]] = {shard: {} for shard in shards}
        for uid, digest in self._digests.items():
            if shard_of(uid) in found:
                found[shard_of(uid)][uid] = digest
        return found

    def _next(self) -> link_pb2.StatusReport | None:
        report = self.sender.next(
            state=self.state, body=lambda digest: None, listings=self._listings, shards=self.shards.sums
        )
        if report is None:
            return None
        total = len(self._numbers)
        report.rollup.agents = report.rollup.connected = report.rollup.healthy = total
        report.rollup.config_status["APPLIED"] = sum(mine != NOTHING.hashes for mine in self._mine)
        report.status.unix_ms = self._clock.unix_ms()
        if self.receiver.version is not None:
            report.status.manifest.CopyFrom(version_message(self.receiver.version))
        self.sender.note(report.sequence)
        return report

    async def tell(self) -> None:
        """Say every second how the node is."""
        while True:
            await asyncio.sleep(TELL_S)
            self.sender.tell = True
            self.link.wake()
            if self.sender.agreed and not len(self.sender):
                self.taken.set()


def said(event: str, **more: object) -> None:
    print(json.dumps({"event": event, **more}), flush=True)


async def run(regions: int, agents: int) -> None:
    metrics, took = NodeMetrics("bench"), list[float]()
    each = agents // regions
    fleet = [Region(f"region-{i:03}", each, metrics, took) for i in range(regions)]
    commands = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    began = time.monotonic()
    tasks = Tasks()
    try:
        for region in fleet:
            tasks.spawn(region.link.run(), name="link")
            tasks.spawn(region.tell(), name="tell")
        for region in fleet:
            await region.taken.wait()
        said("taken", seconds=time.monotonic() - began)
        while await commands.readline():
            times = sorted(took) or [0.0]
            took.clear()
            said("acks", n=len(times), p99_ms=times[int(len(times) * 0.99)] * 1000, max_ms=times[-1] * 1000)
    finally:
        await tasks.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.regions", description=__doc__)
    parser.add_argument("--regions", type=int, default=100)
    parser.add_argument("--agents", type=int, default=100_000)
    options = parser.parse_args()
    log.configure(level="error", component="bench")
    asyncio.run(run(options.regions, options.agents))


if __name__ == "__main__":
    main()
