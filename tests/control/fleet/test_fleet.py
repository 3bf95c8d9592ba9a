"""Reports in, a fleet out: called directly, as the link does."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from unittest.mock import patch

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from relay.control.fleet import query, views
from relay.control.fleet.agents import Agent
from relay.control.fleet.fleet import Fleet
from relay.control.ledger.epoch import raise_epoch
from relay.control.storage import schema
from relay.control.storage.database import FILE
from relay.errors import Conflict, Duplicate, NotFound, StoreError
from relay.fleet.shards import Shards, state_digest
from relay.ids import sha256
from relay.link.protocol.peer import Peer
from relay.link.protocol.sender import SyncSender
from relay.pb.opamp.v1 import opamp_pb2 as pb
from relay.pb.relay.v1 import link_pb2
from relay.testing.clock import ManualClock
from tests.conftest import Programs
from tests.control.actors import ANN
from tests.control.reports import ONE, TWO, entry, shown, up
from tests.fleet.agents import record


async def test_agent_is_known_after_its_report_is_stored(fleet: Fleet) -> None:
    await up(fleet, ONE)
    ack = await fleet.report(ONE, link_pb2.StatusReport(sequence=1, agents=[entry("a", tier="prod")]))
    assert ack.sequence == 1
    view = await shown(fleet, "a")
    assert (view["agent_id"], view["region"], view["node"], view["connected"]) == ("a", "eu", "one", True)
    assert (await query.find(fleet, view["instance_uid"])).agent_id == "a"
    assert query.has_labels(await query.find(fleet, "a"), frozenset({("tier", "prod"), ("region", "eu")}))
    assert not query.has_labels(await query.find(fleet, "a"), frozenset({("tier", "dev")}))
    assert await shown(fleet, "a", frozenset({"node"})) == {"node": "one"}
    with pytest.raises(NotFound):
        await query.find(fleet, "b")


async def test_agent_that_moved_belongs_to_the_newest_session(fleet: Fleet) -> None:
    await up(fleet, ONE, TWO)
    await fleet.report(ONE, link_pb2.StatusReport(sequence=1, agents=[entry("a", started=1)]))
    await fleet.report(TWO, link_pb2.StatusReport(sequence=1, agents=[entry("a", started=2)]))
    uid = record("a").instance_uid
    assert fleet.census.agents[uid].node == "eu/two"
    told = await fleet.report(ONE, link_pb2.StatusReport(sequence=2))
    assert list(told.released) == [uid]
    late = await fleet.report(ONE, link_pb2.StatusReport(sequence=3, agents=[entry("a", started=1, connected=False)]))
    assert list(late.released) == [uid], "the loser's late words change nothing"
    assert fleet.census.agents[uid].connected
    await fleet.report(ONE, link_pb2.StatusReport(sequence=4, removed=[uid]))
    assert uid in fleet.census.agents, "only its owner removes it"
    await fleet.report(TWO, link_pb2.StatusReport(sequence=2, removed=[uid]))
    assert uid not in fleet.census.agents


async def test_shards_detect_differences_and_listings_repair_them(fleet: Fleet) -> None:
    await up(fleet, ONE)
    await fleet.report(ONE, link_pb2.StatusReport(sequence=1, agents=[entry("a"), entry("b"), entry("c")]))
    truth = {
        e.instance_uid: state_digest(e.instance_uid, e.state)
        for e in (entry("a"), entry("b", healthy=False), entry("d"))
    }
    sums = Shards()
    for uid, digest in truth.items():
        sums.replace(uid, 0, digest)
    ack = await fleet.report(ONE, link_pb2.StatusReport(sequence=2, shards=sums.sums()))
    assert ack.list_shards
    listing = link_pb2.ShardListing(shard=ack.list_shards[0])
    listing.agents.extend(link_pb2.AgentDigest(instance_uid=u, digest=d) for u, d in truth.items())
    wanted = await fleet.report(ONE, link_pb2.StatusReport(sequence=3, listings=[listing]))
    assert {fleet_name(u) for u in wanted.want_agents} == {"b", "d"}
    assert {a.agent_id for a in fleet.census.agents.values() if not a.forgotten} == {"a", "b"}
    assert (await shown(fleet, "c"))["connected"] is False, "what the node did not remove stays known"
    await fleet.report(ONE, link_pb2.StatusReport(sequence=4, agents=[entry("b", healthy=False), entry("d")]))
    assert not (await fleet.report(ONE, link_pb2.StatusReport(sequence=5, shards=sums.sums()))).list_shards


def fleet_name(uid: bytes) -> str:
    return uid.rstrip(b"\0").decode()


async def test_second_node_of_the_same_name_is_refused(fleet: Fleet) -> None:
    first, second = (Peer("eu", "one", i) for i in ("1", "2"))
    await up(fleet, first)
    await fleet.report(first, link_pb2.StatusReport(sequence=1, agents=[entry("a")]))
    with pytest.raises(Duplicate):
        await fleet.node_reporting(second)
    assert (await shown(fleet, "a"))["connected"] is True
    fleet.node_gone(first)
    await fleet.node_reporting(second)


async def test_node_may_retry_after_a_store_error(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (Peer("eu", "one", i) for i in ("1", "2"))

    async def full(nodes: object) -> None:
        raise StoreError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(fleet.records, "store_nodes", full)
        for _ in range(3):
            with pytest.raises(StoreError):
                await fleet.node_reporting(first)
    assert not fleet.census.nodes["eu/one"].connected
    await fleet.node_reporting(second)
    fleet.node_gone(second)
    assert not fleet.census.nodes["eu/one"].connected


async def test_disconnected_node_can_be_forgotten(programs: Programs) -> None:
    plane = await programs.opened()
    await up(plane.fleet, ONE, TWO)
    await plane.fleet.report(ONE, link_pb2.StatusReport(sequence=1, agents=[entry("a")]))
    with pytest.raises(Conflict, match="is connected"):
        await plane.fleet.forget_node("eu", "one", actor=ANN)
    with pytest.raises(NotFound):
        await plane.fleet.forget_node("eu", "three", actor=ANN)
    plane.fleet.node_gone(ONE)
    await plane.fleet.forget_node("eu", "one", actor=ANN)
    assert set(plane.fleet.census.nodes) == {"eu/two"}
    await programs.stop(plane)
    again = await programs.opened()
    assert set(again.fleet.census.nodes) == {"eu/two"}
    assert not again.fleet.census.agents


async def test_unreadable_agent_is_left_to_its_node(programs: Programs) -> None:
    plane = await programs.opened()
    await up(plane.fleet, ONE)
    await plane.fleet.report(ONE, link_pb2.StatusReport(sequence=1, agents=[entry("a"), entry("b")]))
    async with plane.fleet._database.write() as connection:
        await connection.execute(
            sa.update(schema.agents).where(schema.agents.c.agent_id == "a").values(state=b"\xff\xff")
        )
    await programs.stop(plane)
    again = await programs.opened()
    assert [a.agent_id for a in again.fleet.census.agents.values()] == ["b"]


async def test_agents_of_a_node_that_never_returns_expire(fleet: Fleet) -> None:
    await up(fleet, ONE, TWO)
    await fleet.report(ONE, link_pb2.StatusReport(sequence=1, agents=[entry("a")]))
    await fleet.report(TWO, link_pb2.StatusReport(sequence=1, agents=[entry("b")]))
    fleet.node_gone(ONE)
    await fleet.expire()
    assert len(fleet.census.agents) == 2
    fleet.census.nodes["eu/one"].last_seen_ms -= 31 * 86400 * 1000
    await fleet.expire()
    assert [a.agent_id for a in fleet.census.agents.values()] == ["b"]


async def test_everything_survives_a_restart(programs: Programs) -> None:
    plane = await programs.opened()
    await up(plane.fleet, ONE)
    await plane.fleet.report(ONE, link_pb2.StatusReport(sequence=1, agents=[entry("a", tier="x"), entry("b")]))
    sums = plane.fleet.census.nodes["eu/one"].shards.sums()
    await programs.stop(plane)
    again = await programs.opened()
    assert again.fleet.census.nodes["eu/one"].shards.sums() == sums
    assert (await shown(again.fleet, "a"))["labels"]["tier"] == "x"
    assert {a.agent_id for a in again.fleet.census.visible()} == {"a", "b"}


# ---- knowledge about a node, and its age


def sums_of(*entries: link_pb2.AgentEntry) -> list[int]:
    sums = Shards()
    for e in entries:
        sums.replace(e.instance_uid, 0, state_digest(e.instance_uid, e.state))
    return sums.sums()


async def test_node_is_heard_once_both_ends_agree(fleet: Fleet) -> None:
    await up(fleet, ONE)
    node = fleet.census.nodes["eu/one"]
    status = link_pb2.NodeStatus(unix_ms=1)
    await fleet.report(ONE, link_pb2.StatusReport(sequence=1, agents=[entry("a")], status=status))
    assert not fleet.census.is_reporting(node)
    await fleet.report(ONE, link_pb2.StatusReport(sequence=2, shards=sums_of(entry("a"), entry("b"))))
    assert not fleet.census.is_reporting(node)
    await fleet.report(ONE, link_pb2.StatusReport(sequence=3, shards=sums_of(entry("a"))))
    assert fleet.census.is_reporting(node)
    fleet.node_gone(ONE)
    await up(fleet, ONE)
    assert not fleet.census.is_reporting(node), "what it told before the break may be old"


async def test_connected_is_unknown_until_both_ends_agree(fleet: Fleet) -> None:
    await up(fleet, ONE)
    both = [entry("a"), entry("b")]
    await fleet.report(ONE, link_pb2.StatusReport(sequence=1, agents=both, shards=sums_of(*both)))
    fleet.node_gone(ONE)
    await up(fleet, ONE)
    await fleet.report(ONE, link_pb2.StatusReport(sequence=1, agents=[entry("a", started=2)]))
    seen = {name: (await shown(fleet, name))["connected"] for name in ("a", "b")}
    assert seen == {"a": True, "b": None}
    await fleet.report(ONE, link_pb2.StatusReport(sequence=2, shards=sums_of(entry("a", started=2), entry("b"))))
    assert (await shown(fleet, "b"))["connected"] is True


async def test_departed_or_long_absent_node_is_gone(programs: Programs) -> None:
    plane = await programs.opened()
    fleet = plane.fleet
    await up(fleet, ONE, TWO)
    one, two = fleet.census.nodes["eu/one"], fleet.census.nodes["eu/two"]
    assert not fleet.census.is_gone(one)
    await fleet.report(ONE, link_pb2.StatusReport(sequence=1, status=link_pb2.NodeStatus(unix_ms=1, leaving=True)))
    fleet.node_gone(ONE)
    assert fleet.census.is_gone(one)
    await programs.stop(plane)
    plane = await programs.opened()
    assert plane.fleet.census.is_gone(plane.fleet.census.nodes["eu/one"]), "also after a restart"
    await up(plane.fleet, ONE)
    plane.fleet.node_gone(ONE)
    assert not plane.fleet.census.is_gone(plane.fleet.census.nodes["eu/one"]), "it came back, and went without a word"
    plane.fleet.census.nodes["eu/one"].last_seen_ms -= 16 * 60 * 1000
    assert not plane.fleet.census.is_gone(plane.fleet.census.nodes["eu/one"]), "nobody else is there"
    await up(plane.fleet, TWO)
    assert plane.fleet.census.is_gone(plane.fleet.census.nodes["eu/one"])
    assert two.name == "two"


async def test_only_the_unreadable_agent_is_refused(fleet: Fleet) -> None:
    await up(fleet, ONE)
    good = entry("good")
    broken = []
    for i, field in enumerate(("agent_description", "health", "remote_config_status", "package_statuses")):
        made = record(f"bad{i}")
        setattr(made, field, b"\x0a\xff")
        broken.append(link_pb2.AgentEntry(instance_uid=made.instance_uid, state=made.state()))
    broken.append(link_pb2.AgentEntry(instance_uid=b"x" * 16, state=b"\xff"))
    broken.append(link_pb2.AgentEntry(instance_uid=b"y" * 16, state=good.state))
    ack = await fleet.report(
        ONE, link_pb2.StatusReport(sequence=1, agents=[good, *broken], shards=sums_of(good, *broken))
    )
    assert list(ack.list_shards) == [], "both ends agree that there is such an agent"
    assert [a.agent_id for a in fleet.census.agents.values()] == ["good"]
    (node,) = views.nodes(fleet.census)
    assert len(node["refused_agents"]) == len(broken)
    assert "cannot be read" in node["problems"][0]
    worse = record("good")
    worse.agent_description = b"\x0a\xff"
    changed = link_pb2.AgentEntry(instance_uid=worse.instance_uid, state=worse.state())
    ack = await fleet.report(ONE, link_pb2.StatusReport(sequence=2, agents=[changed], shards=sums_of(changed, *broken)))
    assert list(ack.list_shards) == [], "nor does it count as what it was before"
    ack = await fleet.report(ONE, link_pb2.StatusReport(sequence=3, agents=[good], shards=sums_of(good, *broken)))
    assert list(ack.list_shards) == []
    mended = entry("bad0")
    await fleet.report(
        ONE, link_pb2.StatusReport(sequence=4, agents=[mended], removed=[e.instance_uid for e in broken])
    )
    assert views.nodes(fleet.census)[0]["refused_agents"] == []
    assert {a.agent_id for a in fleet.census.agents.values()} == {"good", "bad0"}


async def test_fast_clock_does_not_keep_agents_from_other_nodes(fleet: Fleet) -> None:
    await up(fleet, ONE, TWO)
    now_ms = fleet._clock.unix_ms()
    ahead = link_pb2.NodeStatus(unix_ms=now_ms + 60_000)
    stale = entry("a", started=now_ms + 60_000, connected=False)
    await fleet.report(TWO, link_pb2.StatusReport(sequence=1, agents=[stale], status=ahead))
    live = entry("a", started=now_ms - 30_000)
    for sequence in range(1, 4):
        ack = await fleet.report(ONE, link_pb2.StatusReport(sequence=sequence, agents=[live]))
        assert list(ack.released) == [], "it is connected there"
    assert fleet.census.agents[live.instance_uid].node == "eu/one"
    two = next(n for n in views.nodes(fleet.census) if n["name"] == "two")
    assert two["clock_skew_s"] > 59
    assert any("ahead" in problem for problem in two["problems"])


async def test_connected_agent_is_released_once_per_pair_of_nodes(fleet: Fleet) -> None:
    await up(fleet, ONE, TWO)
    released = 0
    for sequence in range(1, 10):
        for identity in (ONE, TWO):
            ack = await fleet.report(
                identity, link_pb2.StatusReport(sequence=sequence, agents=[entry("a", started=sequence * 2)])
            )
            released += len(ack.released)
    assert released <= 2, "two clients under one uid do not chase each other for ever"
    both = [await fleet.report(i, link_pb2.StatusReport(sequence=99)) for i in (ONE, TWO)]
    assert sum(len(ack.released) for ack in both) <= 2


async def test_agent_forgotten_by_its_node_is_still_known(programs: Programs) -> None:
    plane = await programs.opened()
    await up(plane.fleet, ONE)
    a, b = entry("a"), entry("b", connected=False)
    await plane.fleet.report(ONE, link_pb2.StatusReport(sequence=1, agents=[a, b]))
    ack = await plane.fleet.report(
        ONE, link_pb2.StatusReport(sequence=2, forgotten=[b.instance_uid], shards=sums_of(a))
    )
    assert list(ack.list_shards) == []
    for _ in range(2):
        found = await shown(plane.fleet, "b")
        assert (found["agent_id"], found["connected"] in (False, None)) == ("b", True)
        await programs.stop(plane)
        plane = await programs.opened()
        await up(plane.fleet, ONE)
        assert not (await plane.fleet.report(ONE, link_pb2.StatusReport(sequence=1, shards=sums_of(a)))).list_shards
    await plane.fleet.report(ONE, link_pb2.StatusReport(sequence=2, agents=[entry("b", started=9)]))
    assert (await shown(plane.fleet, "b"))["connected"] is True


async def test_agent_both_removed_and_listed_as_gone_is_handled(fleet: Fleet) -> None:
    await up(fleet, ONE)
    await fleet.report(ONE, link_pb2.StatusReport(sequence=1, agents=[entry("a"), entry("b")]))
    uid = record("a").instance_uid
    listing = link_pb2.ShardListing(shard=uid[-1])
    both = link_pb2.StatusReport(sequence=2, removed=[uid], listings=[listing])
    assert (await fleet.report(ONE, both)).sequence == 2
    assert {a.agent_id for a in fleet.census.agents.values()} == {"b"}


async def test_damaged_rows_do_not_stop_others(programs: Programs) -> None:
    plane = await programs.opened()
    await up(plane.fleet, ONE)
    await plane.fleet.report(ONE, link_pb2.StatusReport(sequence=1, agents=[entry("a")]))
    body = pb.AvailableComponents(hash=b"c").SerializeToString()
    await plane.fleet.report(
        ONE, link_pb2.StatusReport(sequence=2, effective_configs=[{"digest": sha256(body), "body": body}])
    )
    await programs.stop(plane)
    file = sqlite3.connect(programs.folder / "control-plane" / FILE)
    file.execute("UPDATE nodes SET trusted = 'x' || trusted")
    file.execute("UPDATE effective_configs SET body = x'00'")
    file.commit()
    file.close()
    again = await programs.opened()
    assert (await query.find(again.fleet, "a")).agent_id == "a"
    assert await again.fleet.bodies.components(sha256(body)) == pb.AvailableComponents()


@pytest.mark.parametrize("table", ["facts", "manifests", "secrets"])
async def test_database_facts_are_verified(programs: Programs, table: str) -> None:
    plane = await programs.opened()
    await plane.publisher.policy("eu")
    await plane.ledger.change(ANN, lambda state, _: raise_epoch(state, "test"))
    await programs.stop(plane)
    column = "body" if table == "manifests" else "value"
    file = sqlite3.connect(programs.folder / "control-plane" / FILE)
    file.execute(f"UPDATE {table} SET {column} = CAST('x' || {column} AS BLOB)")
    file.commit()
    file.close()
    with pytest.raises(StoreError, match=f"table {table}: .* is damaged: restore a backup"):
        await programs.opened()


async def test_node_without_a_report_stream_is_not_heard(fleet: Fleet) -> None:
    await up(fleet, ONE)
    made = entry("a")
    sums = Shards()
    sums.replace(made.instance_uid, 0, state_digest(made.instance_uid, made.state))
    status = link_pb2.NodeStatus(policy_age_s=0)
    await fleet.report(ONE, link_pb2.StatusReport(sequence=1, agents=[made], shards=sums.sums(), status=status))
    node = fleet.census.nodes["eu/one"]
    assert fleet.census.is_reporting(node)
    fleet.node_gone(ONE)
    fleet.node_synced(ONE, SyncSender(link_pb2.SyncHello(node=ONE.message())), True)
    assert not fleet.census.is_reporting(node), "its Sync stream is up first"
    assert fleet.census.connected(await query.find(fleet, "a")) is None
    await fleet.node_reporting(ONE)
    assert not fleet.census.is_reporting(node)


async def test_forgetting_a_node_happens_once_and_is_audited(programs: Programs) -> None:
    plane = await programs.opened()
    await up(plane.fleet, ONE)
    plane.fleet.node_gone(ONE)
    twice = [plane.fleet.forget_node("eu", "one", actor=ANN) for _ in range(2)]
    first, second = await asyncio.gather(*twice, return_exceptions=True)
    assert (first, type(second)) == (None, NotFound)
    (entry_,) = await plane.audit.listing()
    assert (entry_["actor"], entry_["action"], entry_["subject"]) == ("ann", "forget", "Node/eu/one")


async def test_node_that_returns_while_being_forgotten_is_new(programs: Programs) -> None:
    plane = await programs.opened()
    await up(plane.fleet, ONE)
    await plane.fleet.report(ONE, link_pb2.StatusReport(sequence=1, agents=[entry("a")]))
    plane.fleet.node_gone(ONE)
    sender = SyncSender(link_pb2.SyncHello(node=ONE.message()))
    forgetting = asyncio.ensure_future(plane.fleet.forget_node("eu", "one", actor=ANN))
    await asyncio.sleep(0)
    plane.fleet.node_synced(ONE, sender, True)
    await asyncio.gather(forgetting, plane.fleet.node_reporting(ONE))
    node = plane.fleet.census.nodes["eu/one"]
    assert (node.connected, node.sender, node.agents) == (True, sender, set())
    await plane.fleet.report(ONE, link_pb2.StatusReport(sequence=1, agents=[entry("a")]))
    assert len(plane.fleet.census.nodes["eu/one"].agents) == 1


async def test_waiting_reports_are_stored_together(fleet: Fleet) -> None:
    nodes = [Peer("eu", f"n{number}", trusted="all") for number in range(4)]
    await up(fleet, *nodes)
    reports = [link_pb2.StatusReport(sequence=1, agents=[entry(f"a{number}")]) for number in range(3)]
    reports.append(link_pb2.StatusReport(sequence=1, agents=[entry("a1", started=9)]))
    with patch.object(fleet.records, "replace", wraps=fleet.records.replace) as stored:
        acks = await asyncio.gather(*(fleet.report(*pair) for pair in zip(nodes, reports, strict=True)))
    assert [len(call.args[1]) for call in stored.await_args_list] == [1, 2, 1], (
        "the second word of one agent comes after"
    )
    assert [ack.sequence for ack in acks] == [1, 1, 1, 1]
    assert {ack.window for ack in acks} == {16}
    assert fleet.census.by_id("a1")[0].node == "eu/n3"


async def test_report_window_shrinks_with_many_nodes(fleet: Fleet) -> None:
    nodes = [Peer("eu", f"n{number}") for number in range(100)]
    await up(fleet, *nodes)
    assert (await fleet.report(nodes[0], link_pb2.StatusReport(sequence=1))).window == 2
    for node in nodes[1:]:
        fleet.node_gone(node)
    assert (await fleet.report(nodes[0], link_pb2.StatusReport(sequence=2))).window == 16


async def test_failed_batch_is_retried_one_report_at_a_time(fleet: Fleet) -> None:
    nodes = [Peer("eu", f"n{number}", trusted="all") for number in range(3)]
    await up(fleet, *nodes)
    reports = [link_pb2.StatusReport(sequence=1, agents=[entry(f"a{number}")]) for number in (0, 2, 1)]
    real = fleet.records.replace

    async def full(connection: AsyncConnection, agents: list[tuple[Agent, bytes]]) -> None:
        if any(agent.agent_id == "a1" for agent, _ in agents):
            raise StoreError("no room for a1")
        await real(connection, agents)

    with patch.object(fleet.records, "replace", full):
        done = await asyncio.gather(
            *(fleet.report(*pair) for pair in zip(nodes, reports, strict=True)), return_exceptions=True
        )
    assert [type(one) for one in done] == [link_pb2.ReportAck, link_pb2.ReportAck, StoreError]
    assert sorted(agent.agent_id for agent in fleet.census.visible()) == ["a0", "a2"]
    assert [node.unstored is None for node in fleet.census.nodes.values()] == [True, True, False]


async def test_bad_report_does_not_affect_others_in_its_batch(fleet: Fleet) -> None:
    nodes = [Peer("eu", f"n{number}", trusted="all") for number in range(3)]
    await up(fleet, *nodes)
    nobody = link_pb2.AgentEntry(instance_uid=b"", state=b"x")
    reports = [link_pb2.StatusReport(sequence=1, agents=[one]) for one in (entry("a"), entry("b"), nobody)]
    pairs = zip(nodes, reports, strict=True)
    done = await asyncio.gather(*(fleet.report(*pair) for pair in pairs), return_exceptions=True)
    assert [isinstance(one, link_pb2.ReportAck) for one in done] == [True, True, False]


async def test_cancelled_stream_does_not_affect_other_reports(fleet: Fleet) -> None:
    nodes = [Peer("eu", f"n{number}", trusted="all") for number in range(6)]
    await up(fleet, *nodes)
    chance = random.Random(7)
    for round_ in range(1, 15):
        reports = [link_pb2.StatusReport(sequence=round_, agents=[entry(f"a{n}", started=round_)]) for n in range(6)]
        tasks = [asyncio.ensure_future(fleet.report(*pair)) for pair in zip(nodes, reports, strict=True)]
        await asyncio.sleep(chance.random() * 0.004)
        for task in tasks[::2]:
            task.cancel()
        done = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(one) for one in done[1::2]] == [link_pb2.ReportAck] * 3
    assert not fleet._queue
    assert len(fleet.census) == len(await fleet.records.states([agent.uid for agent in fleet.census.visible()]))


# ---- who is a node


def process(incarnation: str, installation: str = "") -> Peer:
    return Peer("eu", "one", incarnation, trusted="all", installation=installation)


async def test_restart_replaces_the_former_process_at_once(fleet: Fleet) -> None:
    await up(fleet, process("1", "store"))
    fleet.admit(process("2", "store"))
    assert fleet.census.nodes["eu/one"].incarnation == "2"
    with pytest.raises(Duplicate):
        fleet.admit(process("3", "another store"))
    with pytest.raises(Duplicate):
        fleet.admit(process("4"))


async def test_another_process_waits_until_the_first_is_silent(fleet: Fleet, clock: ManualClock) -> None:
    await up(fleet, process("1", "store"))
    clock.advance(14)
    with pytest.raises(Duplicate):
        fleet.admit(process("2", "another"))
    await fleet.report(process("1", "store"), link_pb2.StatusReport(sequence=1))
    clock.advance(14)
    with pytest.raises(Duplicate):
        fleet.admit(process("2", "another"))
    clock.advance(1)
    fleet.admit(process("2", "another"))


async def test_copies_of_a_data_folder_do_not_fight_for_ever(fleet: Fleet) -> None:
    await up(fleet, process("1", "store"))
    fleet.admit(process("2", "store"))
    with pytest.raises(Duplicate):
        fleet.admit(process("1", "store"))
    node = fleet.census.nodes["eu/one"]
    assert node.incarnation == "2"
    assert "another process wants to report under its name, and was refused" in views.problems(node)
    fleet.admit(process("2", "store"))
