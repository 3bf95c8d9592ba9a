import asyncio
from pathlib import Path

from relay.ids import AgentId
from relay.link.protocol.reports import ReportSender
from relay.node.registry import BUCKET, EFFECTIVE_BUCKET, Registry
from relay.opamp.record import Record
from relay.store.local import LocalStore
from relay.testing.clock import ManualClock
from tests.conftest import eventually
from tests.fleet.agents import record


class Desk:
    def __init__(self, folder: Path) -> None:
        self.store = LocalStore(folder / "s")
        self.clock = ManualClock()
        self.sender = ReportSender(max_agents=100)
        self.woken = 0
        self.registry = Registry(self.store, self.sender, clock=self.clock, wake=self.wake)

    def wake(self) -> None:
        self.woken += 1

    def add(self, name: str) -> Record:
        made = self.registry.new(record(name).instance_uid)
        for slot in ("agent_description", "agent_id", "capabilities", "health", "connected", "transport"):
            setattr(made, slot, getattr(record(name), slot))
        self.registry.changed(made)
        return made


async def test_change_reaches_disk_sums_and_report(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    made = desk.add("a")
    await eventually(lambda: desk.woken)
    assert desk.sender.changed == {made.instance_uid: None}
    assert desk.registry.rollup.connected == 1
    assert desk.registry.state(made.instance_uid) == made.state()
    assert desk.registry.state(b"?" * 16) is None
    assert sum(desk.registry.shards.sums()) == made.digest
    assert desk.registry.listings([made.instance_uid[-1]]) == {made.instance_uid[-1]: {made.instance_uid: made.digest}}
    await desk.store.flush()
    desk.store.close()
    again = Desk(tmp_path)
    back = again.registry.get(made.instance_uid)
    assert back is not None
    assert (back.agent_id, back.connected, back.sequence_exact) == ("a", False, False)
    assert len(again.registry) == 1
    again.store.close()


def writes_of(desk: Desk) -> list[bytes]:
    """The keys that are put into the store from now on."""
    keys: list[bytes] = []
    put = desk.store.put

    def counted(bucket: str, key: bytes, value: bytes | None) -> None:
        keys.append(key)
        put(bucket, key, value)

    desk.store.put = counted  # type: ignore[method-assign]
    return keys


async def test_many_changes_of_one_agent_are_one_write(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    for i in range(450):
        desk.add(str(i))
    made = desk.add("a")
    written = writes_of(desk)
    desk.registry.changed(made)
    await eventually(lambda: len(desk.sender) == 451)
    assert (len(written), written.count(made.instance_uid)) == (451, 1)
    desk.store.close()


async def test_agents_that_change_again_within_a_storm_are_written_once(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    keys = writes_of(desk)
    agents = [desk.add(str(i)) for i in range(300)]
    await asyncio.sleep(0.3)
    for agent in agents:
        desk.registry.changed(agent)
    await eventually(lambda: len(desk.sender) == 300)
    assert len(keys) == 300
    desk.store.close()


async def test_orderly_shutdown_keeps_the_exact_sequence(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    made = desk.add("a")
    made.sequence_num = 41
    desk.registry.save_all()
    desk.store.close()
    again = Desk(tmp_path)
    back = again.registry.get(made.instance_uid)
    assert back is not None
    assert (back.sequence_num, back.sequence_exact) == (41, True)
    again.store.close()


async def test_forget_removes_all_traces(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    made = desk.add("a")
    await eventually(lambda: desk.woken)
    desk.registry.remove(made.instance_uid)
    desk.registry.remove(made.instance_uid)
    assert desk.sender.removed == {made.instance_uid: None}
    assert sum(desk.registry.shards.sums()) == 0
    assert desk.registry.rollup.message().agents == 0
    await desk.store.flush()
    assert desk.store.load(BUCKET) == []
    desk.store.close()


async def test_long_absent_agents_expire_with_their_configs(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    away, here = desk.add("away"), desk.add("here")
    for made, digest in ((away, b"d1"), (here, b"d2")):
        made.effective_config_digest = digest
        desk.registry.keep_effective_config(made, b"body")
    assert desk.registry.effective_config(b"d1") == b"body"
    await desk.store.flush()
    away.connected = False
    desk.clock.advance(100)
    desk.registry.expire(50, desk.store.keys(EFFECTIVE_BUCKET))
    await desk.store.flush()
    assert [r.agent_id for r in desk.registry] == ["here"]
    assert [digest for digest, _ in desk.store.load(EFFECTIVE_BUCKET)] == [b"d2"]
    desk.store.close()


async def test_unreadable_record_is_dropped_and_logged(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.store.put(BUCKET, b"k", b"\xff\xff")
    await desk.store.flush()
    desk.store.close()
    again = Desk(tmp_path)
    assert len(again.registry) == 0
    await again.store.flush()
    assert again.store.load(BUCKET) == []
    again.store.close()


async def test_new_uid_moves_the_record(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    made = desk.add("a")
    old = made.instance_uid
    await eventually(lambda: desk.woken)
    desk.registry.rename(made, b"n" * 16)
    assert desk.registry.get(old) is None
    assert desk.registry.get(b"n" * 16) is made
    await eventually(lambda: b"n" * 16 in desk.sender.changed)
    assert old in desk.sender.removed
    desk.store.close()


async def test_unused_effective_config_is_removed(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    one, two = desk.add("a"), desk.add("b")

    def runs(who: Record, digest: bytes) -> None:
        who.effective_config_digest = digest
        desk.registry.keep_effective_config(who, b"body of " + digest)

    def kept() -> set[bytes]:
        return {d for d in (b"1", b"2", b"3") if desk.registry.effective_config(d) is not None}

    runs(one, b"1")
    runs(two, b"1")
    runs(one, b"2")
    assert kept() == {b"1", b"2"}
    runs(two, b"2")
    assert kept() == {b"2"}
    desk.registry.remove(two.instance_uid)
    assert kept() == {b"2"}
    desk.registry.rename(one, b"new" + bytes(13))
    assert kept() == {b"2"}
    runs(one, b"3")
    assert kept() == {b"3"}
    desk.registry.remove(one.instance_uid)
    assert kept() == set()
    desk.store.close()


async def test_unreadable_records_are_dropped(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    made = desk.add("a")
    await eventually(lambda: desk.woken)
    for key, value in ((b"?" * 16, b""), (b"!" * 16, b"\xff\xff")):
        desk.store.put(BUCKET, key, value)
    await desk.store.flush()
    desk.store.close()
    again = Desk(tmp_path)
    assert [r.instance_uid for r in again.registry] == [made.instance_uid]
    again.store.close()


async def test_make_room_removes_only_disconnected_agents(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    made = [desk.add(str(i)) for i in range(3)]
    await eventually(lambda: desk.registry.rollup.connected == 3)
    assert not desk.registry.make_room(3)
    made[1].connected = False
    desk.registry.changed(made[1])
    await eventually(lambda: desk.registry.rollup.connected == 2)
    assert desk.registry.make_room(3)
    assert {r.agent_id for r in desk.registry} == {"0", "2"}
    desk.store.close()


async def test_unused_names_are_forgotten(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    made = desk.add("a")
    made.agent_id = AgentId("b")
    desk.registry.changed(made)
    assert set(desk.registry._uid_of) == {"a", "b"}
    desk.registry.expire(3600, [])
    assert set(desk.registry._uid_of) == {"b"}
    desk.registry.remove(made.instance_uid)
    assert not desk.registry._uid_of
    assert not desk.registry._ghosts
    desk.store.close()


async def test_one_agent_has_a_limited_number_of_records(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    agents = [desk.add(str(number)) for number in range(3)]
    for made in agents:
        made.agent_id = AgentId("one")
        desk.registry.changed(made)
        desk.clock.advance(1)
    assert desk.registry.has_room_for("other", 1)
    assert desk.registry.has_room_for("one", 4)
    assert not desk.registry.has_room_for("one", 3), "all are connected"
    for made in agents[1:]:
        made.connected = False
    assert desk.registry.has_room_for("one", 3)
    assert [desk.registry.get(made.instance_uid) is not None for made in agents] == [True, False, True]
    desk.store.close()
