"""Playbooks for the control plane's end of Sync, and both ends run against each other."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from relay.ids import sha256
from relay.link.protocol.peer import CHUNK_BYTES
from relay.link.protocol.receiver import Candidate, SyncReceiver
from relay.link.protocol.sender import RegionPolicy, SyncSender
from relay.pb.relay.v1 import link_pb2
from tests.link.protocol.test_receiver import NODE


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
