"""Signed policy: what a node takes, from the link and from its disk. Each refusal is an attack."""

from __future__ import annotations

import dataclasses

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from relay.auth.key_sets import RESOURCE, KeyChain
from relay.auth.key_sets import sign as sign_key_set
from relay.auth.signing import Purpose, Signed, sign
from relay.link.protocol.peer import Version
from relay.link.protocol.receiver import Candidate, SyncReceiver
from relay.link.protocol.sender import RegionPolicy, SyncSender
from relay.link.protocol.signatures import (
    check_stored,
    freshness_payload,
    manifest_payload,
    needed,
    opened,
    parsed,
    signed_message,
    vouched,
)
from relay.pb.relay.v1 import link_pb2
from tests.auth.test_key_sets import ATTACKER, FIRST, ROOT, ROOT_ID, SECOND, roots
from tests.link.protocol.test_receiver import NODE
from tests.link.protocol.test_receiver import update as unsigned_update

KEY, NEXT_KEY = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
ONE = dataclasses.replace(FIRST, manifests=roots(KEY))
TWO = dataclasses.replace(SECOND, manifests=roots(NEXT_KEY))
CHAIN = KeyChain.of([sign_key_set(ONE, ROOT)])
LONGER = CHAIN.extended([sign_key_set(TWO, ROOT)])
POLICY = {"a": b"1", "b": b"2"}


def signed_policy(
    resources: dict[str, bytes],
    version: Version,
    *,
    region: str = "eu",
    chain: KeyChain = CHAIN,
    key: Ed25519PrivateKey = KEY,
) -> RegionPolicy:
    """A policy with the key sets in it, signed."""
    held = {**resources, RESOURCE: chain.resource()}
    return RegionPolicy(version, held, sign(Purpose.MANIFEST, manifest_payload(region, version, held), key))


def updates(policy: RegionPolicy, receiver: SyncReceiver) -> list[link_pb2.Update]:
    sender = SyncSender(receiver.hello(NODE, frozenset()).hello)
    return [response.update for response in sender.next(policy)]


def take(receiver: SyncReceiver, policy: RegionPolicy, *, refused: tuple[str, ...] = ()) -> str:
    """Give a policy to a node. Returns why it refuses it; empty if it takes it."""
    (update,) = updates(policy, receiver)
    answer = receiver.receive(update)
    if isinstance(answer, Candidate):
        outcome = receiver.outcome(answer, dict.fromkeys(refused, "no"), frozenset(refused))
        answer = receiver.accept(outcome)
    return answer.ack.refused


def holding(policy: RegionPolicy | None = None) -> SyncReceiver:
    receiver = SyncReceiver("eu", {}, None, chain=CHAIN)
    assert take(receiver, policy or signed_policy(POLICY, (1, 5))) == ""
    return receiver


def test_first_key_sets_are_trusted_and_kept_to() -> None:
    receiver = SyncReceiver("eu", {}, None)
    assert take(receiver, signed_policy(POLICY, (1, 1))) == ""
    assert receiver.chain == CHAIN
    assert receiver.hello(NODE, frozenset()).hello.key_set == 1
    other = KeyChain.of([sign_key_set(dataclasses.replace(ONE, trust_domain="evil"), ROOT)])
    assert "not the control plane that this node trusts" in take(receiver, signed_policy(POLICY, (9, 9), chain=other))
    assert receiver.is_foreign
    assert receiver.refusal
    assert take(receiver, signed_policy(POLICY, (1, 2))) == ""
    assert (receiver.is_foreign, receiver.refusal) == (False, "")


def test_attack_another_root_than_the_one_that_was_given() -> None:
    receiver = SyncReceiver("eu", {}, None, root="f" * 64)
    assert "no key set is signed by the root" in take(receiver, signed_policy(POLICY, (1, 1)))
    without = unsigned_update(POLICY, (1, 1))
    answer = receiver.receive(without)
    assert isinstance(answer, link_pb2.SyncRequest)
    assert answer.ack.refused == "no key set came with it"
    assert take(SyncReceiver("eu", {}, None, root=ROOT_ID), signed_policy(POLICY, (1, 1))) == ""


@pytest.mark.parametrize(
    ("policy", "reason"),
    [
        (signed_policy({}, (2, 1), key=ATTACKER), "the manifest is not signed by a key of key set 1"),
        (signed_policy({}, (2, 1), key=ROOT), "the manifest is not signed by a key of key set 1"),
        (signed_policy({}, (2, 1), region="us"), "the manifest is for region us"),
        (signed_policy({}, (1, 4)), "is older than"),
        (signed_policy({}, (1, 5)), "differs from the one of this number"),
        (dataclasses.replace(signed_policy({}, (2, 1)), manifest=None), "the manifest is not signed"),
        (
            dataclasses.replace(signed_policy({}, (2, 1)), manifest=sign(Purpose.FRESHNESS, b"", KEY)),
            "the manifest is not signed",
        ),
        (
            dataclasses.replace(signed_policy({}, (2, 1)), manifest=sign(Purpose.MANIFEST, b"\xff", KEY)),
            "the Manifest cannot be read",
        ),
        (signed_policy({}, (2, 1), chain=LONGER), "the manifest is not signed by a key of key set 2"),
    ],
)
def test_attack_policy_that_is_not_the_control_planes(policy: RegionPolicy, reason: str) -> None:
    receiver = holding()
    before = dict(receiver.held)
    assert reason in take(receiver, policy)
    assert (receiver.held, receiver.version, receiver.chain) == (before, (1, 5), CHAIN)


def test_key_sets_are_judged_before_the_manifest() -> None:
    receiver = holding()
    assert take(receiver, signed_policy(POLICY, (1, 6), chain=LONGER, key=NEXT_KEY)) == ""
    assert receiver.chain is not None
    assert receiver.chain.current == TWO
    assert "not signed by a key of key set 2" in take(receiver, signed_policy(POLICY, (1, 7), chain=LONGER))


def test_policy_of_a_key_set_without_keys_is_not_signed() -> None:
    chain = KeyChain.of([sign_key_set(FIRST, ROOT)])
    receiver = SyncReceiver("eu", {}, None, chain=chain)
    assert take(receiver, dataclasses.replace(signed_policy(POLICY, (1, 1), chain=chain), manifest=None)) == ""
    assert receiver.manifests == ()


def test_node_that_has_seen_no_key_set_reads_a_signed_manifest() -> None:
    receiver = SyncReceiver("eu", {}, None)
    signed = sign(Purpose.MANIFEST, manifest_payload("eu", (1, 1), POLICY), KEY)
    assert take(receiver, RegionPolicy((1, 1), POLICY, signed)) == ""
    assert receiver.chain is None


def test_older_nodes_get_the_plain_manifest() -> None:
    hello = SyncReceiver("eu", {}, None).hello(NODE, frozenset()).hello
    hello.ClearField("key_set")
    (response,) = SyncSender(hello).next(signed_policy(POLICY, (1, 1)))
    assert response.update.HasField("manifest")
    assert not response.update.HasField("signed_manifest")


# ---- Freshness


def freshness(at_ms: int, *, region: str = "eu", version: Version = (1, 5), key: Ed25519PrivateKey = KEY) -> Signed:
    return sign(Purpose.FRESHNESS, freshness_payload(region, version, at_ms), key)


def confirmed(receiver: SyncReceiver, signed: Signed, now_ms: int = 10_000) -> int | None:
    return receiver.confirms(link_pb2.SyncResponse(signed_freshness=signed_message(signed)), now_ms)


def test_only_a_newer_freshness_counts() -> None:
    receiver = holding()
    assert confirmed(receiver, freshness(1_000)) == 1_000
    assert confirmed(receiver, freshness(1_000)) is None, "repeated"
    assert confirmed(receiver, freshness(500)) is None, "held back"
    assert confirmed(receiver, freshness(2_000, version=(1, 4))) is None, "about another policy"
    assert confirmed(receiver, freshness(2_000)) == 2_000


@pytest.mark.parametrize(
    ("signed", "reason"),
    [
        (freshness(9_000, key=ATTACKER), "the freshness is not signed"),
        (freshness(9_000, region="us"), "is for region us"),
        (sign(Purpose.MANIFEST, freshness_payload("eu", (1, 5), 9_000), KEY), "the freshness is not signed"),
        (sign(Purpose.FRESHNESS, b"\xff", KEY), "the Freshness cannot be read"),
    ],
)
def test_attack_freshness_that_is_not_the_control_planes(signed: Signed, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        confirmed(holding(), signed)


def test_unsigned_freshness_counts_only_where_policy_is_not_signed() -> None:
    plain = link_pb2.Freshness.FromString(freshness_payload("eu", (1, 5), 9_000))
    with pytest.raises(ValueError, match="not signed"):
        holding().confirms(link_pb2.SyncResponse(freshness=plain), 0)
    open_receiver = SyncReceiver("eu", {}, (1, 5))
    response = link_pb2.SyncResponse(freshness=plain)
    assert [open_receiver.confirms(response, 0) for _ in range(2)] == [0, 0], "it proves no time"


def test_freshness_of_a_wrong_clock_does_not_freeze_for_long() -> None:
    receiver = holding()
    assert confirmed(receiver, freshness(86_400_000), now_ms=1_000) == 86_400_000
    assert confirmed(receiver, freshness(2_000), now_ms=2_000) is None
    assert confirmed(receiver, freshness(302_000), now_ms=302_000) == 302_000


def partial(policy: RegionPolicy, receiver: SyncReceiver, without: str) -> link_pb2.Update:
    """The update to a policy, without one resource."""
    (update,) = updates(policy, receiver)
    kept = [resource for resource in update.resources if resource.name != without]
    del update.resources[:]
    update.resources.extend(kept)
    return update


def test_attack_revocations_are_held_back() -> None:
    receiver = holding()
    policy = signed_policy({**POLICY, "Revocations/agents": b"{}"}, (1, 6))
    answer = receiver.receive(partial(policy, receiver, "Revocations/agents"))
    assert isinstance(answer, link_pb2.SyncRequest)
    assert "Revocations/agents did not arrive as it was signed" in answer.ack.refused
    assert receiver.version == (1, 5)


def test_attack_policy_with_a_part_held_back_is_not_fresh() -> None:
    receiver = holding()
    answer = receiver.receive(partial(signed_policy({**POLICY, "a": b"new"}, (1, 6)), receiver, "a"))
    assert isinstance(answer, Candidate)
    receiver.accept(receiver.outcome(answer, {}, frozenset()))
    assert receiver.held["a"] == b"1", "the last good one"
    assert confirmed(receiver, freshness(1_000, version=(1, 6))) is None
    assert take(receiver, signed_policy({**POLICY, "a": b"new"}, (1, 7))) == ""
    assert confirmed(receiver, freshness(2_000, version=(1, 7))) == 2_000


def test_attack_older_policy_while_the_newer_could_not_be_stored() -> None:
    receiver = holding()
    receiver.floor = (1, 6)  # who may connect is of that version already
    assert "is older than" in take(receiver, signed_policy({}, (1, 5)))
    assert take(receiver, signed_policy(POLICY, (1, 6))) == ""


# ---- the disk


def test_resource_kept_from_a_former_policy_keeps_its_manifest() -> None:
    receiver = holding(signed_policy({"a": b"good", "b": b"2"}, (1, 5)))
    first = receiver.manifests
    assert take(receiver, signed_policy({"a": b"unreadable", "b": b"3"}, (1, 6)), refused=("a",)) == ""
    assert receiver.held["a"] == b"good"
    assert receiver.manifests[1:] == first
    check_stored("eu", (1, 6), receiver.manifests, CHAIN)
    assert vouched(receiver.held, receiver.manifests) == (receiver.held, [])
    assert take(receiver, signed_policy({"a": b"better", "b": b"3"}, (1, 7))) == ""
    assert len(receiver.manifests) == 1, "nothing needs the former one"


def test_attack_policy_on_the_disk_is_replaced() -> None:
    receiver = holding()
    manifests = receiver.manifests
    good, others = vouched({**receiver.held, "a": b"evil", "c": b"added"}, manifests)
    assert (good, others) == ({n: p for n, p in receiver.held.items() if n != "a"}, ["a", "c"])
    forged = (sign(Purpose.MANIFEST, manifests[0].payload, ATTACKER),)
    for region, version, stored, reason in (
        ("eu", (1, 5), forged, "not signed by the control plane that this node trusts"),
        ("eu", (1, 5), (*manifests, *forged), "not signed by the control plane"),
        ("us", (1, 5), manifests, "is not the one in force"),
        ("eu", (1, 6), manifests, "is not the one in force"),
        ("eu", (1, 5), (), "is not the one in force"),
    ):
        with pytest.raises(ValueError, match=reason):
            check_stored(region, version, stored, CHAIN)
    check_stored("eu", (1, 5), manifests, LONGER)


def test_needed_keeps_the_first_and_what_vouches_for_the_rest() -> None:
    first, second, third = (
        sign(Purpose.MANIFEST, manifest_payload("eu", (1, n), held), KEY)
        for n, held in ((3, {"a": b"3"}), (2, {"b": b"2"}), (1, {"b": b"2", "c": b"1"}))
    )
    assert needed({"a": b"3"}, (first, second, third)) == (first,)
    assert needed({"a": b"3", "b": b"2"}, (first, second, third)) == (first, second)
    assert needed({"a": b"3", "c": b"1"}, (first, second, third)) == (first, third)
    assert needed({}, ()) == ()


def test_messages_that_cannot_be_read() -> None:
    with pytest.raises(ValueError, match="the Manifest cannot be read"):
        parsed(link_pb2.Manifest(), b"\xff")
    assert opened(Purpose.MANIFEST, signed_message(sign(Purpose.MANIFEST, b"m", KEY)), CHAIN).payload == b"m"
