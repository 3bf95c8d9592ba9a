"""Playbooks for each end, and both ends run against each other."""

from __future__ import annotations

from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.errors import UpstreamError
from relay.ids import sha256
from relay.link.protocol import (
    CHUNK_BYTES,
    WINDOW,
    Candidate,
    Peer,
    RegionPolicy,
    ReportSender,
    SyncReceiver,
    SyncSender,
    Version,
)
from relay.pb.relay.v1 import link_pb2

NODE = Peer("eu", "n1")


def update(resources: dict[str, bytes], version: Version, *, region: str = "eu") -> link_pb2.Update:
    message = link_pb2.Update(nonce="n")
    message.manifest.version.epoch, message.manifest.version.number = version
    message.manifest.region = region
    for name, payload in resources.items():
        message.resources.add(name=name, digest=sha256(payload), payload=payload)
        message.manifest.entries.add(name=name, digest=sha256(payload))
    return message


def accept(receiver: SyncReceiver, answer: object) -> link_pb2.SyncAck:
    assert isinstance(answer, Candidate)
    return receiver.accept(receiver.outcome(answer, {}, frozenset())).ack


def test_hello_lists_held_resources() -> None:
    hello = SyncReceiver("eu", {"a": b"1"}, (1, 2)).hello(NODE, frozenset({1})).hello
    assert [(r.name, r.digest) for r in hello.held] == [("a", sha256(b"1"))]
    assert (hello.manifest.epoch, hello.manifest.number) == (1, 2)
    assert list(hello.renderers) == [1]
    assert not SyncReceiver("eu", {}, None).hello(NODE, frozenset()).hello.HasField("manifest")


def test_update_takes_effect_with_its_manifest() -> None:
    receiver = SyncReceiver("eu", {}, None)
    part = link_pb2.Update(nonce="1")
    part.resources.add(name="a", digest=sha256(b"1"), payload=b"1")
    answer = receiver.receive(part)
    assert isinstance(answer, link_pb2.SyncRequest)
    assert (answer.ack.nonce, receiver.held) == ("1", {})
    final = update({"b": b"2"}, (1, 1))
    final.manifest.entries.add(name="a", digest=sha256(b"1"))
    candidate = receiver.receive(final)
    assert isinstance(candidate, Candidate)
    outcome = receiver.outcome(candidate, {}, frozenset())
    assert receiver.version is None, "nothing changes before it is stored"
    request = receiver.accept(outcome)
    assert outcome.changes == {"a": b"1", "b": b"2"}
    assert not request.ack.rejected
    assert receiver.version == (1, 1)


@pytest.mark.parametrize(
    ("message", "reason"),
    [(update({}, (1, 4)), "older"), (update({}, (0, 9)), "older"), (update({}, (2, 1), region="us"), "region us")],
)
def test_inadmissible_update_is_refused_whole(message: link_pb2.Update, reason: str) -> None:
    receiver = SyncReceiver("eu", {"a": b"1"}, (1, 5))
    answer = receiver.receive(message)
    assert isinstance(answer, link_pb2.SyncRequest)
    assert reason in answer.ack.refused
    assert (receiver.held, receiver.version) == ({"a": b"1"}, (1, 5))


def test_resource_with_a_wrong_digest_keeps_its_last_form() -> None:
    receiver = SyncReceiver("eu", {"a": b"old"}, (1, 1))
    message = update({"a": b"new", "b": b"2"}, (1, 2))
    message.resources[0].payload = b"damaged"
    message.manifest.entries.add(name="c", digest=sha256(b"never sent"))
    ack = accept(receiver, receiver.receive(message))
    assert [(r.name, r.reason) for r in ack.rejected] == [("a", "digest does not match"), ("c", "did not arrive")]
    assert receiver.held == {"a": b"old", "b": b"2"}


def test_unreadable_resources_are_rejected_and_needed_ones_kept() -> None:
    receiver = SyncReceiver("eu", {"a": b"old", "input": b"x", "gone": b"y"}, (1, 1))
    candidate = receiver.receive(update({"a": b"bad", "b": b"bad too"}, (1, 2)))
    assert isinstance(candidate, Candidate)
    outcome = receiver.outcome(candidate, {"a": "no", "b": "no"}, frozenset({"a", "input"}))
    request = receiver.accept(outcome)
    assert receiver.held == {"a": b"old", "input": b"x"}
    assert outcome.changes == {"gone": None}
    assert {r.name: r.digest for r in request.ack.rejected} == {"a": sha256(b"bad"), "b": sha256(b"bad too")}


def test_refused_candidate_changes_nothing() -> None:
    receiver = SyncReceiver("eu", {}, None)
    candidate = receiver.receive(update({"a": b"1"}, (1, 1)))
    assert isinstance(candidate, Candidate)
    assert receiver.refuse(candidate, "disk full").ack.refused == "disk full"
    assert (receiver.held, receiver.version) == ({}, None)


def converge(receiver: SyncReceiver, sender: SyncSender, policy: RegionPolicy) -> int:
    """Run both ends until the sender has nothing left; return the number of resources sent."""
    sent = 0
    while responses := sender.next(policy):
        for response in responses:
            sent += len(response.update.resources)
            answer = receiver.receive(response.update)
            if isinstance(answer, Candidate):
                answer = receiver.accept(receiver.outcome(answer, {}, frozenset()))
            sender.acknowledged(answer.ack)
    return sent


payloads = st.dictionaries(st.sampled_from("abcdef"), st.binary(max_size=3), max_size=6)


@given(payloads, payloads)
def test_both_ends_agree_and_only_differences_are_sent(held: dict[str, bytes], wanted: dict[str, bytes]) -> None:
    receiver = SyncReceiver("eu", held, (1, 1))
    sender = SyncSender(receiver.hello(NODE, frozenset()).hello)
    sent = converge(receiver, sender, RegionPolicy((1, 2), wanted))
    assert receiver.held == wanted
    assert sent == sum(held.get(name) != payload for name, payload in wanted.items())
    assert sender.acked == (1, 2)
    assert not sender.in_flight


def test_only_missing_resources_are_sent() -> None:
    policy = RegionPolicy((1, 1), {"a": b"1"})
    receiver = SyncReceiver("eu", {"a": b"1"}, (1, 1))
    assert SyncSender(receiver.hello(NODE, frozenset()).hello).next(policy) == []
    lacking = SyncReceiver("eu", {}, (1, 1))
    assert converge(lacking, SyncSender(lacking.hello(NODE, frozenset()).hello), policy) == 1


def test_large_policy_is_split_into_updates() -> None:
    receiver = SyncReceiver("eu", {}, None)
    sender = SyncSender(receiver.hello(NODE, frozenset()).hello)
    wanted = {str(i): bytes(CHUNK_BYTES // 2) for i in range(5)}
    responses = sender.next(RegionPolicy((1, 1), wanted))
    assert len(responses) == 3
    assert [r.update.HasField("manifest") for r in responses] == [False, False, True]


def test_one_update_at_a_time_and_no_resend_after_refusal() -> None:
    sender = SyncSender(SyncReceiver("eu", {}, None).hello(NODE, frozenset()).hello)
    policy = RegionPolicy((1, 1), {"a": b"1"})
    (response,) = sender.next(policy)
    assert sender.in_flight
    assert sender.next(RegionPolicy((1, 2), {})) == []
    assert not sender.acknowledged(link_pb2.SyncAck(nonce="other"))
    assert sender.acknowledged(link_pb2.SyncAck(nonce=response.update.nonce, refused="no"))
    assert sender.refused == "no"
    assert sender.next(policy) == [], "the same again would be refused again"
    assert sender.next(RegionPolicy((1, 2), {"a": b"1"}))


# ---- reports


class Node:
    def __init__(self, most: int = 2) -> None:
        self.sender = ReportSender(max_agents=most)
        self.states: dict[bytes, bytes] = {}
        self.heard()

    def heard(self) -> None:
        """Set the window that the other end grants."""
        self.sender.acknowledged(link_pb2.ReportAck(sequence=0, window=WINDOW))

    def change(self, *names: bytes) -> None:
        for name in names:
            self.states[name] = self.states.get(name, b"") + b"x"
            self.sender.change(name)

    def next(self) -> link_pb2.StatusReport | None:
        return self.sender.next(
            state=self.states.get,
            body=lambda digest: b"body" if digest == b"d" else None,
            listings=lambda shards: {shard: {b"u": shard} for shard in shards},
            shards=lambda: [0] * 256,
        )

    def agents(self) -> list[bytes]:
        report = self.next()
        return [a.instance_uid for a in report.agents] if report else []


def test_changes_are_sent_once_with_the_latest_state() -> None:
    node = Node()
    node.change(b"a", b"b", b"a", b"c")
    first = node.next()
    assert first is not None
    assert [(a.instance_uid, a.state) for a in first.agents] == [(b"a", b"xx"), (b"b", b"x")]
    assert first.sequence == 1
    last = node.next()
    assert last is not None
    assert [a.instance_uid for a in last.agents] == [b"c"]
    assert (len(first.shards), len(last.shards)) == (0, 256), "the sums go behind the last change"
    assert node.next() is None
    assert node.sender.in_flight == 2
    node.sender.acknowledged(link_pb2.ReportAck(sequence=2))
    assert (node.sender.in_flight, node.sender.agreed) == (0, True)
    assert node.next() is None


def test_in_flight_changes_are_resent_after_a_broken_stream() -> None:
    node = Node()
    node.change(b"a", b"b", b"c")
    node.sender.remove(b"z")
    node.next()
    node.sender.restart()
    node.heard()
    assert set(node.agents() + node.agents()) == {b"a", b"b", b"c"}
    node.sender.restart()
    report = node.next()
    assert report is not None
    assert list(report.removed) == [b"z"]


def test_removed_agent_is_not_resurrected_by_in_flight_reports() -> None:
    node = Node()
    node.change(b"a")
    node.next()
    node.sender.remove(b"a")
    node.sender.restart()
    report = node.next()
    assert report is not None
    assert (list(report.agents), list(report.removed)) == ([], [b"a"])
    node.sender.change(b"a")
    assert not node.sender.removed


def test_vanished_agent_is_left_out() -> None:
    node = Node()
    node.sender.change(b"gone")
    node.change(b"here")
    assert node.agents() == [b"here"]


def test_report_is_bounded_in_bytes() -> None:
    node = Node(most=100)
    for name in (b"a", b"b", b"c"):
        node.states[name] = bytes(CHUNK_BYTES)
        node.sender.change(name)
    assert [node.agents() for _ in range(3)] == [[b"a"], [b"b"], [b"c"]]


def test_refused_and_rejected_resources_are_resent_when_they_may_succeed() -> None:
    sender = SyncSender(SyncReceiver("eu", {}, None).hello(NODE, frozenset()).hello)
    policy = RegionPolicy((1, 1), {"a": b"1", "b": b"2"})
    (first,) = sender.next(policy)
    sender.acknowledged(link_pb2.SyncAck(nonce=first.update.nonce, refused="disk full"))
    assert sender.next(policy) == []
    sender.retry()
    (second,) = sender.next(policy)
    rejected = [link_pb2.Rejection(name="a", digest=sha256(b"1"), reason="no")]
    sender.acknowledged(link_pb2.SyncAck(nonce=second.update.nonce, rejected=rejected))
    (third,) = sender.next(RegionPolicy((1, 2), {"a": b"1", "b": b"2"}))
    assert [r.name for r in third.update.resources] == ["a"]


def test_stream_begins_with_one_report() -> None:
    node = Node(most=1)
    node.change(b"a", b"b", b"c")
    node.sender.restart()
    assert [node.agents(), node.agents()] == [[b"a"], []]
    node.sender.acknowledged(link_pb2.ReportAck(sequence=1, window=WINDOW))
    assert [node.agents(), node.agents()] == [[b"b"], [b"c"]]


def test_window_limits_reports() -> None:
    node = Node(most=1)
    node.change(b"a", b"b", b"c")
    node.sender.acknowledged(link_pb2.ReportAck(sequence=0, window=2))
    assert node.agents() == [b"a"]
    assert node.agents() == [b"b"]
    assert node.next() is None
    node.sender.acknowledged(link_pb2.ReportAck(sequence=1))
    assert node.agents() == [b"c"]


def test_requests_of_the_control_plane_are_answered() -> None:
    node = Node()
    node.next()
    node.states[b"w"] = b"state"
    node.sender.acknowledged(
        link_pb2.ReportAck(sequence=1, want_effective_configs=[b"d", b"lost"], list_shards=[3, 999], want_agents=[b"w"])
    )
    report = node.next()
    assert report is not None
    assert [(b.digest, b.body) for b in report.effective_configs] == [(b"d", b"body")]
    assert [(s.shard, s.agents[0].digest) for s in report.listings] == [(3, 3)]
    assert [a.instance_uid for a in report.agents] == [b"w"]
    node.sender.restart()
    assert b"d" in node.sender.bodies


def test_acknowledgement_of_an_unsent_report_is_an_error() -> None:
    with pytest.raises(UpstreamError):
        Node().sender.acknowledged(link_pb2.ReportAck(sequence=5))


def test_node_status_is_sent_when_idle() -> None:
    node = Node()
    node.next()
    node.sender.acknowledged(link_pb2.ReportAck(sequence=1))
    assert node.next() is None
    node.sender.send_status = True
    report = node.next()
    assert report is not None
    assert report.sequence == 2


def test_reports_are_not_delayed_until_both_ends_agree() -> None:
    node = Node()
    assert node.sender.is_urgent
    assert node.next() is not None
    node.sender.acknowledged(link_pb2.ReportAck(sequence=1, list_shards=[1]))
    assert node.sender.is_urgent
    again = node.next()
    assert again is not None
    assert (len(again.listings), len(again.shards)) == (1, 256)
    node.sender.acknowledged(link_pb2.ReportAck(sequence=2))
    assert (node.sender.agreed, node.sender.is_urgent) == (True, False)
    node.sender.restart()
    assert not node.sender.agreed
    for number in range(1, 7):
        node.sender.verify = True
        assert node.next() is not None
        node.sender.acknowledged(link_pb2.ReportAck(sequence=number, list_shards=[1]))
    assert not node.sender.is_urgent, "what differs for ever is no reason to hurry for ever"


def test_listings_are_bounded_in_bytes() -> None:
    node = Node()
    node.next()
    node.sender.acknowledged(link_pb2.ReportAck(sequence=1, list_shards=list(range(256))))
    many = {n.to_bytes(16, "big"): n for n in range(CHUNK_BYTES // 32 // 10)}
    report = node.sender.next(
        state=node.states.get,
        body=lambda _: None,
        listings=lambda shards: dict.fromkeys(shards, many),
        shards=lambda: [0] * 256,
    )
    assert report is not None
    assert len(report.listings) == 11


def test_forgotten_agents_stay_known_upstream() -> None:
    node = Node()
    node.change(b"a")
    node.next()
    node.sender.forget(b"a")
    assert not node.sender.is_known(b"a")
    report = node.next()
    assert report is not None
    assert (list(report.removed), list(report.forgotten)) == ([], [b"a"])
    node.sender.restart()
    again = node.next()
    assert again is not None
    assert list(again.forgotten) == [b"a"]
    node.sender.acknowledged(link_pb2.ReportAck(sequence=1))
    assert node.sender.is_known(b"a")
    node.sender.forget(b"b")
    node.sender.change(b"b")
    assert not node.sender.forgotten, "it came back"


@pytest.mark.parametrize("trusted", ["all", (), ("tier", "zone")])
def test_node_identifies_itself(trusted: Literal["all"] | tuple[str, ...]) -> None:
    peer = Peer("eu", "one", "3f2c", "1.2", trusted)
    assert Peer.of(link_pb2.NodeIdentity.FromString(peer.message().SerializeToString())) == peer
