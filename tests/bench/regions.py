"""Nodes that only report: the real link client, with agents that exist only as numbers.

Each node takes the policy of its region and decides by it, as real nodes do. Its agents apply every offer at once, and
their states are built on demand. Commands come on stdin, one per line:

- `acks`: acknowledgement times of reports since the last such command: `{"event": "acks", "n", "p99_ms", "max_ms"}`.

Prints `{"event": "taken", "seconds"}` once the control plane has acknowledged all agents.
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
from relay.link.protocol.peer import Peer, version_message
from relay.link.protocol.receiver import Candidate, SyncReceiver
from relay.link.protocol.reports import ReportSender
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
class AgentOffer:
    """The offering of agents with one decision, as in their states."""

    offering: link_pb2.Offering
    status: bytes | None


def make_offer(decision: Decision, now_ms: int) -> AgentOffer:
    offering = Offering()
    if decision is NOTHING:
        return AgentOffer(offering.message(), None)
    slots = tuple(OfferedSlot(c.slot, c.assignment.published.name, c.content_hash) for c in decision.choices)
    offering.offer(decision.config_hash, slots, True)
    offering.take_status(decision.config_hash, APPLIED, "")
    offering.stamp(now_ms)
    status = pb.RemoteConfigStatus(
        last_remote_config_hash=decision.config_hash, status=pb.RemoteConfigStatuses_APPLIED
    ).SerializeToString()
    return AgentOffer(offering.message(), status)


class TimedSender(ReportSender):
    """Measures how long each report takes to be acknowledged."""

    def __init__(self, ack_times: list[float]) -> None:
        super().__init__(max_agents=BATCH)
        self._ack_times = ack_times
        self._sent: dict[int, float] = {}

    def note(self, sequence: int) -> None:
        self._sent[sequence] = time.perf_counter()

    def acknowledged(self, ack: link_pb2.ReportAck) -> None:
        if ack.sequence in self._sent:
            self._ack_times.append(time.perf_counter() - self._sent.pop(ack.sequence))
        super().acknowledged(ack)


class Region:
    """One node and its agents."""

    def __init__(self, name: str, agents: int, metrics: NodeMetrics, ack_times: list[float]) -> None:
        clock = SystemClock()
        self.name = name
        self._began_ms = clock.unix_ms()
        self._clock = clock
        self._numbers = {sha256(f"{name}/{i}".encode())[:16]: i for i in range(agents)}
        self._digests: dict[bytes, int] = {}
        self._shared_description = self._description()
        self._offers = {NOTHING.hashes: make_offer(NOTHING, 0)}
        self._decisions = [NOTHING.hashes] * agents
        self.shards = Shards()
        self.taken = asyncio.Event()
        """The control plane knows all agents, and both ends agree."""
        self.receiver = SyncReceiver(name, {}, None)
        self.sender = TimedSender(ack_times)
        for uid in self._numbers:
            self.sender.change(uid)
        peer = Peer(name, "node", str(time.time_ns()), "bench", TRUSTED)
        down = Downward(self.receiver, RENDERERS, self._put_in_force, lambda _: None)
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
        """The part of the description that all agents share."""
        description = pb.AgentDescription()
        for key, value in list(self._attributes("").items())[2:]:
            identifying = key.startswith("service.")
            attributes = description.identifying_attributes if identifying else description.non_identifying_attributes
            attributes.add(key=key).value.string_value = value
        return description.SerializeToString()

    def _own_description(self, name: str) -> bytes:
        description = pb.AgentDescription()
        description.identifying_attributes.add(key="service.instance.id").value.string_value = name
        description.non_identifying_attributes.add(key="host.name").value.string_value = f"host-{name}"
        return description.SerializeToString()

    def state(self, uid: bytes) -> bytes:
        number = self._numbers[uid]
        name = f"{self.name}-{number:06}"
        offer = self._offers[self._decisions[number]]
        message = link_pb2.AgentState(
            instance_uid=uid,
            agent_id=name,
            connected=True,
            transport="websocket",
            session_started_unix_ms=self._began_ms + number,
            first_seen_unix_ms=self._began_ms + number,
            last_change_unix_ms=max(self._began_ms + number, offer.offering.offered_at_unix_ms),
            capabilities=CAPABILITIES,
            agent_description=self._shared_description + self._own_description(name),
            health=HEALTH,
            config=offer.offering,
        )
        if offer.status is not None:
            message.remote_config_status = offer.status
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
            if decision.hashes != self._decisions[number] and decision is not NOTHING:
                if decision.hashes not in self._offers:
                    self._offers[decision.hashes] = make_offer(decision, self._clock.unix_ms())
                self._decisions[number] = decision.hashes
                self.sender.change(uid)
        self.link.wake()
        outcome = self.receiver.outcome(candidate, snapshot.rejected, snapshot.needed, snapshot.salvaged)
        return self.receiver.accept(outcome)

    def _listings(self, shards: Collection[int]) -> Mapping[int, Mapping[bytes, int]]:
        listings: dict[int, dict[bytes, int]] = {shard: {} for shard in shards}
        for uid, digest in self._digests.items():
            if shard_of(uid) in listings:
                listings[shard_of(uid)][uid] = digest
        return listings

    def _next(self) -> link_pb2.StatusReport | None:
        report = self.sender.next(
            state=self.state, body=lambda digest: None, listings=self._listings, shards=self.shards.sums
        )
        if report is None:
            return None
        total = len(self._numbers)
        report.rollup.agents = report.rollup.connected = report.rollup.healthy = total
        report.rollup.config_status["APPLIED"] = sum(hashes != NOTHING.hashes for hashes in self._decisions)
        report.status.unix_ms = self._clock.unix_ms()
        if self.receiver.version is not None:
            report.status.manifest.CopyFrom(version_message(self.receiver.version))
        self.sender.note(report.sequence)
        return report

    async def send_status(self) -> None:
        """Send the node's status every second."""
        while True:
            await asyncio.sleep(TELL_S)
            self.sender.send_status = True
            self.link.wake()
            if self.sender.agreed and not len(self.sender):
                self.taken.set()


def emit(event: str, **more: object) -> None:
    print(json.dumps({"event": event, **more}), flush=True)


async def run(regions: int, agents: int) -> None:
    metrics, ack_times = NodeMetrics("bench"), list[float]()
    each = agents // regions
    fleet = [Region(f"region-{i:03}", each, metrics, ack_times) for i in range(regions)]
    commands = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    began = time.monotonic()
    tasks = Tasks()
    try:
        for region in fleet:
            tasks.spawn(region.link.run(), name="link")
            tasks.spawn(region.send_status(), name="tell")
        for region in fleet:
            await region.taken.wait()
        emit("taken", seconds=time.monotonic() - began)
        while await commands.readline():
            times = sorted(ack_times) or [0.0]
            ack_times.clear()
            emit("acks", n=len(times), p99_ms=times[int(len(times) * 0.99)] * 1000, max_ms=times[-1] * 1000)
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
