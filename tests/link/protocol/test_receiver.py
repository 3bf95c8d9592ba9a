"""Playbooks for the node's end of Sync."""

from __future__ import annotations

import pytest

from relay.ids import sha256
from relay.link.protocol.peer import Peer, Version
from relay.link.protocol.receiver import Candidate, SyncReceiver
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
