"""Playbooks for the node's end of Report."""

from __future__ import annotations

import pytest

from relay.errors import UpstreamError
from relay.link.protocol.peer import CHUNK_BYTES, WINDOW
from relay.link.protocol.reports import ReportSender
from relay.pb.relay.v1 import link_pb2


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
