"""Rollouts through the real programs: a control plane, nodes, and agents that comply or do not."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
import sqlalchemy as sa

from relay.control.app import ControlPlane
from relay.control.fleet import views
from relay.errors import Conflict, NotFound, Refused, StoreError
from relay.node.app import Node
from relay.pb.opamp.v1 import opamp_pb2 as pb
from relay.pb.relay.v1 import link_pb2
from relay.testing.clock import ManualClock, MovableClock
from relay.testing.fault_proxy import FaultProxy
from tests.conftest import TEMPLATE, Programs, apply, assignment, eventually
from tests.control.actors import ANN, BOB
from tests.control.changing import change
from tests.control.reports import ONE, entry, shown, up
from tests.control.texts import TWO_STAGES, staged, strategy
from tests.wire import TestAgent, WebSocketPipe, frame


class Fleet:
    """Agents that apply offered configs, unless the test says otherwise."""

    def __init__(self) -> None:
        self.agents: list[TestAgent] = []
        self.rates: dict[int, int] = {}
        """Agent number → the rate that it runs."""
        self.refuses: set[int] = set()
        """Rates that agents cannot apply."""
        self.sickens: set[int] = set()
        """Rates that make agents unhealthy."""
        self.silent: set[int] = set()
        """Rates that agents do not answer."""
        self.offers = 0
        self._tasks: list[asyncio.Task[None]] = []

    async def join(self, node: Node, count: int, **labels: str) -> None:
        for _ in range(count):
            agent = await TestAgent.over("websocket", node.ports)
            number = len(self.agents)
            self.agents.append(agent)
            answer = await agent.hello(None, **labels)
            self._tasks.append(asyncio.create_task(self._live(number, agent, answer)))

    async def _live(self, number: int, agent: TestAgent, answer: pb.ServerToAgent) -> None:
        while True:
            while answer.HasField("remote_config"):
                answer = await self._obey(number, agent, answer)
            with contextlib.suppress(TimeoutError):
                answer = await agent.pipe.pushed()

    async def _obey(self, number: int, agent: TestAgent, answer: pb.ServerToAgent) -> pb.ServerToAgent:
        self.offers += 1
        rate = int(answer.remote_config.config.config_map[""].body.splitlines()[0].split(b":")[1])
        if rate in self.silent:
            return pb.ServerToAgent()
        if rate in self.refuses:
            return await agent.failed(answer.remote_config.config_hash, f"{rate} is not for me")
        self.rates[number] = rate
        healthy = rate not in self.sickens
        return await agent.applied(answer.remote_config.config_hash, healthy=healthy)

    async def say(self, number: int, **parts: Any) -> None:
        """Send an additional report; the agent's own task receives the answer."""
        agent = self.agents[number]
        assert isinstance(agent.pipe, WebSocketPipe)
        agent.pipe.socket.write(frame(b"\0" + agent.message(**parts).SerializeToString()))

    def running(self, rate: int) -> int:
        return sum(r == rate for r in self.rates.values())

    async def leave(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for agent in self.agents:
            await agent.close()


@pytest.fixture
async def fleet() -> AsyncIterator[Fleet]:
    made = Fleet()
    yield made
    with contextlib.suppress(Exception):
        await made.leave()


async def ready(
    programs: Programs, fleet: Fleet, *texts: str, count: int = 20, **settings: Any
) -> tuple[ControlPlane, Node]:
    """Start programs whose agents all run rate 1, with the documents of `texts` in force."""
    plane = await programs.control_plane(**settings)
    await apply(plane, TEMPLATE, *texts)
    await plane.documents.apply([("f", assignment("a", rate=1))])
    node = await programs.node(plane.ports["link"])
    await eventually(lambda: node.policy.accepted)
    await fleet.join(node, count)
    await eventually(lambda: fleet.running(1) == count)
    await eventually(lambda: len(plane.fleet.census.agents) == count)
    await eventually(lambda: all(a.config.status == "APPLIED" for a in plane.fleet.census.agents.values()))
    return plane, node


async def state_is(plane: ControlPlane, name: str, state: str) -> dict[str, Any]:
    async def check() -> dict[str, Any] | None:
        status = await plane.status.of(name)
        return status if status["state"] == state else None

    return dict(await eventually(check))


async def test_change_goes_out_in_stages_and_completes(programs: Programs, fleet: Fleet) -> None:
    held = strategy("name: canary, percentage: 10, manual: true", "name: all, percentage: 100")
    plane, _ = await ready(programs, fleet, held)
    await change(plane, staged(2))
    await eventually(lambda: fleet.running(2) == 2)
    await asyncio.sleep(1.2)
    status = await plane.status.of("a-2")
    assert fleet.running(2) == 2, "exactly a tenth of twenty, and no more until a person says so"
    assert status["state"] == "running"
    assert status["stages"][0]["counts"]["applied"] == 2
    assert "manual promotion" in status["stages"][0]["gate"]["reason"]
    assert status["regions"] == {"local": {**status["stages"][0]["counts"], "state": "following"}}
    with pytest.raises(Conflict, match="is now in stage canary"):
        await plane.actions.act("a-2", "promote", ANN, stage=1)
    await plane.actions.act("a-2", "promote", ANN, stage=0)
    with pytest.raises(Conflict, match="is now in stage all"):
        await plane.actions.act("a-2", "promote", BOB, stage=0)
    await state_is(plane, "a-2", "completed")
    assert fleet.running(2) == 20
    assert [r["state"] for r in await plane.status.history("a")] == ["completed", "completed"]
    with pytest.raises(Conflict, match="it cannot be rolled back"):
        await plane.actions.act("a-2", "rollback", ANN)
    with pytest.raises(NotFound):
        await plane.status.of("a-9")


async def test_failures_roll_back_and_are_remembered_until_retry(programs: Programs, fleet: Fleet) -> None:
    plane, node = await ready(programs, fleet, TWO_STAGES)
    fleet.refuses = {2}
    await change(plane, staged(2))
    status = await state_is(plane, "a-2", "rolled_back")
    assert "failed" in status["reason"]
    assert {(t["state"], t["message"]) for t in status["troubled"]} == {("failed", "2 is not for me")}
    assert len(status["troubled"]) == 2
    assert fleet.running(1) == 20
    again = (await plane.documents.apply([("f", staged(2))])).applied[0]
    assert (again.action, "opampctl rollout retry a-2" in again.warnings[0]) == ("unchanged", True)
    assert sum(bool(r.config.failures) for r in node.registry) == 2
    offers = fleet.offers
    await change(plane, staged(1))
    await state_is(plane, "a-3", "completed")
    await change(plane, staged(2))
    fleet.refuses = set()
    await eventually(lambda: fleet.running(2) >= 1)
    await state_is(plane, "a-4", "completed")
    assert fleet.running(2) == 18, "those that failed once are not asked again"
    await plane.actions.retry("a-4", ANN)
    await eventually(lambda: fleet.running(2) == 20)
    assert fleet.offers > offers


async def test_unhealthy_agents_roll_back(programs: Programs, fleet: Fleet) -> None:
    plane, _ = await ready(programs, fleet, TWO_STAGES)
    fleet.sickens = {2}
    await change(plane, staged(2))
    status = await state_is(plane, "a-2", "rolled_back")
    assert "unhealthy" in status["reason"]
    await eventually(lambda: fleet.running(1) == 20)
    actions = [e["action"] for e in await plane.audit.listing()]
    assert actions[-2:] == ["rolling_back", "rolled_back"]
    assert (await plane.audit.verify())["ok"]


async def test_silent_agents_hold_the_rollout(programs: Programs, fleet: Fleet) -> None:
    quiet = strategy("name: canary, percentage: 10", "name: all, percentage: 100", max_silent="1s")
    plane, _ = await ready(programs, fleet, quiet)
    fleet.silent = {2}
    await change(plane, staged(2))
    status = await state_is(plane, "a-2", "held")
    assert status["stages"][0]["counts"]["silent"] == 2
    assert fleet.running(1) == 20
    await plane.actions.act("a-2", "rollback", ANN, reason="enough")
    assert (await state_is(plane, "a-2", "rolling_back"))["reason"] == "enough"


async def test_change_waits_for_approval_by_another_person(programs: Programs, fleet: Fleet) -> None:
    rules = {"config_update": {"approval_required": True, "approvals_needed": 1, "four_eyes": True}}
    plane = await programs.control_plane(policies=rules)
    await change(plane, TEMPLATE + TWO_STAGES + staged(1), actor="ann")
    status = await plane.status.of("a-1")
    assert (status["state"], status["created_by"]) == ("pending_approval", "ann")
    node = await programs.node(plane.ports["link"])
    await eventually(lambda: node.policy.accepted)
    await fleet.join(node, 3)
    assert not fleet.rates
    with pytest.raises(Conflict, match="ann made this change"):
        await plane.actions.approve("a-1", ANN, status["digest"])
    with pytest.raises(Conflict, match="review it again"):
        await plane.actions.approve("a-1", BOB, "0" * 64)
    await change(plane, staged(3), actor="ann")
    with pytest.raises(Conflict, match="a-1 has ended; the latest rollout of ConfigAssignment a is a-2"):
        await plane.actions.approve("a-1", BOB, status["digest"])
    assert (await plane.status.of("a-1"))["state"] == "superseded"
    newer = await plane.status.of("a-2")
    approved = await plane.status.of(await plane.actions.approve("a-2", BOB, newer["digest"]))
    assert approved["approvals"][0]["actor"] == "bob"
    await state_is(plane, "a-2", "completed")
    await eventually(lambda: fleet.running(3) == 3)
    await change(plane, staged(4), actor="ann")
    rejected = await plane.status.of(await plane.actions.act("a-3", "reject", BOB, reason="not on a Friday"))
    assert (rejected["state"], rejected["reason"]) == ("rejected", "not on a Friday")
    assert fleet.running(3) == 3


async def test_killed_control_plane_resumes_the_rollout(programs: Programs, fleet: Fleet) -> None:
    manual = strategy("name: canary, percentage: 10, manual: true", "name: all, percentage: 100")
    plane, _ = await ready(programs, fleet, manual)
    await change(plane, staged(2))
    await eventually(lambda: fleet.running(2) == 2)
    before = plane.ledger.state.assignments["a"]
    link = plane.ports["link"]
    await programs.stop(plane)
    again = await programs.control_plane(link=link)
    assert again.ledger.state.assignments["a"] == before
    await eventually(lambda: again.fleet.census.nodes["local/one"].connected)
    await asyncio.sleep(1)
    assert fleet.running(2) == 2
    await again.actions.act("a-2", "promote", ANN, stage=0)
    await state_is(again, "a-2", "completed")
    assert fleet.running(2) == 20


async def test_newer_change_supersedes_and_no_agent_goes_back(programs: Programs, fleet: Fleet) -> None:
    manual = strategy("name: canary, percentage: 50, manual: true", "name: all, percentage: 100")
    plane, _ = await ready(programs, fleet, manual)
    await change(plane, staged(2))
    await eventually(lambda: fleet.running(2) == 10)
    await change(plane, staged(3))
    await eventually(lambda: fleet.running(3) == 10)
    assert (await plane.status.of("a-2"))["state"] == "superseded"
    ones, twos = fleet.running(1), fleet.running(2)
    assert ones + twos == 10
    assert twos > 0, "half of those that had the older candidate still do"
    await plane.actions.act("a-3", "promote", ANN, stage=0)
    await state_is(plane, "a-3", "completed")
    assert fleet.running(3) == 20


async def test_selector_change_goes_out_in_stages(programs: Programs, fleet: Fleet) -> None:
    manual = strategy("name: canary, percentage: 50, manual: true", "name: all, percentage: 100")
    plane, node = await ready(programs, fleet, manual, count=10)
    await fleet.join(node, 10, tier="new")
    await eventually(lambda: fleet.running(1) == 20)
    await eventually(lambda: len(plane.fleet.census.agents) == 20)
    low = assignment("low", rate=7, priority=-1)
    await change(plane, low + staged(1, selector="{labels: {tier: new}}"))
    await eventually(lambda: fleet.running(7) > 0)
    await asyncio.sleep(1)
    assert 0 < fleet.running(7) < 10, "only those of the first stage were taken off it"
    await plane.actions.act("a-2", "promote", ANN, stage=0)
    await eventually(lambda: (fleet.running(1), fleet.running(7)) == (10, 10))


MANUAL = strategy("name: canary, percentage: 50, manual: true", "name: all, percentage: 100")


async def test_rollback_completes_for_agents_without_a_previous_revision(programs: Programs, fleet: Fleet) -> None:
    plane, _ = await ready(programs, fleet, MANUAL, count=4)
    await change(plane, assignment("b", rate=5, priority=9, selector="{labels: {tier: none}}"))
    await change(plane, staged(6, "b", priority=9))
    await eventually(lambda: fleet.running(6) == 2)
    await plane.actions.act("b-2", "rollback", ANN)
    await state_is(plane, "b-2", "rolled_back")
    await eventually(lambda: fleet.running(1) == 4)


async def test_reverting_a_running_change_completes_at_once(programs: Programs, fleet: Fleet) -> None:
    plane, _ = await ready(programs, fleet, MANUAL)
    await change(plane, staged(2))
    await eventually(lambda: fleet.running(2) == 10)
    await change(plane, staged(1))
    status = await state_is(plane, "a-3", "completed")
    assert status["reason"] == "back to the stable revision"
    await eventually(lambda: fleet.running(1) == 20)


async def test_disconnected_canaries_hold_the_rollout(programs: Programs, fleet: Fleet) -> None:
    slow = strategy("name: canary, percentage: 50, duration: 2s", "name: all, percentage: 100")
    plane, _ = await ready(programs, fleet, slow)
    await change(plane, staged(2))
    await eventually(lambda: fleet.running(2) == 10)
    for number, rate in list(fleet.rates.items()):
        if rate == 2:
            await fleet.agents[number].close()
    status = await state_is(plane, "a-2", "held")
    assert status["stages"][0]["counts"]["silent"] == 10
    assert fleet.running(1) == 10


async def test_documents_needed_by_a_rollback_cannot_be_deleted(programs: Programs, fleet: Fleet) -> None:
    second = "---" + TEMPLATE.replace("version: v1", "version: v2")
    plane, _ = await ready(programs, fleet, MANUAL, second, count=4)
    fleet.silent = {1}
    await change(plane, staged(2, version="v2"))
    await eventually(lambda: fleet.running(2) == 2)
    await plane.actions.act("a-2", "rollback", ANN)
    assert (await plane.status.of("a-2"))["state"] == "rolling_back"
    with pytest.raises(Refused, match="in use by ConfigAssignment a"):
        await plane.documents.delete("ConfigTemplate", "basic@v2")


async def test_fix_does_not_restore_a_failed_candidate(programs: Programs, fleet: Fleet) -> None:
    pausing = strategy("name: canary, percentage: 50", "name: all, percentage: 100", failure_policy="{action: pause}")
    plane, _ = await ready(programs, fleet, pausing)
    fleet.sickens = {2}
    await change(plane, staged(2))
    await state_is(plane, "a-2", "paused")
    await change(plane, staged(3))
    await state_is(plane, "a-3", "completed")
    assert plane.ledger.state.assignments["a"].layers == ()
    assert fleet.running(3) == 20


async def test_new_template_and_its_assignment_apply_together(programs: Programs, fleet: Fleet) -> None:
    plane, _ = await ready(programs, fleet, TWO_STAGES, count=4)
    second = "---" + TEMPLATE.replace("version: v1", "version: v2")
    await change(plane, second + staged(2, version="v2"))
    await state_is(plane, "a-2", "completed")
    assert fleet.running(2) == 4


async def test_diff_does_not_affect_a_later_change(programs: Programs, fleet: Fleet) -> None:
    plane, _ = await ready(programs, fleet, MANUAL, count=4)
    assert (await plane.diffs.diff([("f", staged(9))]))["agents_changed"] == 4
    await change(plane, staged(2))
    await eventually(lambda: fleet.running(2) == 2)

    async def offered() -> bool:
        return bool((await plane.status.of("a-2"))["stages"][0]["counts"]["offered"] == 2)

    await eventually(offered)


async def test_old_rollout_cannot_be_retried_over_the_current_one(programs: Programs, fleet: Fleet) -> None:
    plane, _ = await ready(programs, fleet, MANUAL, count=4)
    await change(plane, staged(2))
    with pytest.raises(Conflict, match="a-1 is no longer what ConfigAssignment a asks for"):
        await plane.actions.retry("a-1", ANN)
    assert (await plane.status.of("a-2"))["state"] in ("running", "held")
    await plane.actions.act("a-2", "promote", ANN, stage=0)


async def test_broken_rollout_does_not_stop_others(
    programs: Programs, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    plane, _ = await ready(programs, fleet, TWO_STAGES, count=2)
    await change(plane, assignment("b", slot="b"))
    step = plane.loop.step

    async def breaking(name: str) -> None:
        if name == "b":
            raise KeyError(name)
        await step(name)

    monkeypatch.setattr(plane.loop, "step", breaking)
    await change(plane, staged(2))
    await state_is(plane, "a-2", "completed")


async def test_offline_region_holds_and_shows_divergent_until_it_returns(programs: Programs, fleet: Fleet) -> None:
    clock = MovableClock()
    half = strategy("name: canary, percentage: 50, manual: true", "name: b, percentage: 99")
    plane, node = await ready(programs, fleet, half, clock=clock)
    await change(plane, staged(2))
    await eventually(lambda: fleet.running(2) == 10)
    await eventually(
        lambda: (
            sum(bool(a.config.applied) and a.config.status == "APPLIED" for a in plane.fleet.census.agents.values())
            == 20
        )
    )
    clock.advance(60)
    state = plane.fleet.census.nodes["local/one"]
    plane.fleet.node_gone(_identity(node))
    sender, state.sender = state.sender, None
    status = await state_is(plane, "a-2", "held")
    assert status["regions"]["local"]["state"] == "dark"
    assert "is offline" in status["stages"][0]["gate"]["reason"]
    state.sender = sender
    state.reporting += 1
    await plane.actions.act("a-2", "rollback", ANN)
    await state_is(plane, "a-2", "rolled_back")
    await eventually(lambda: fleet.running(1) == 20)


async def test_region_behind_a_stalled_link_holds(programs: Programs, fleet: Fleet) -> None:
    held = strategy("name: canary, percentage: 50, manual: true", "name: b, percentage: 99")
    clock = MovableClock()
    plane = await programs.control_plane(clock=clock)
    proxy = FaultProxy("127.0.0.1", plane.ports["link"])
    await proxy.start()
    try:
        await change(plane, TEMPLATE + held + assignment("a", rate=1))
        node = await programs.node(proxy.port)
        await eventually(lambda: node.policy.accepted)
        await fleet.join(node, 4)
        await eventually(lambda: sum(a.config.status == "APPLIED" for a in plane.fleet.census.agents.values()) == 4)
        clock.advance(60)
        await change(plane, staged(2))
        await eventually(lambda: fleet.running(2) == 2)
        proxy.stall()
        # Both ends notice by gRPC's keepalive: 10 s until a ping, 5 s for its answer.
        await eventually(lambda: not plane.fleet.census.nodes["local/one"].connected, within_s=40)
        status = await state_is(plane, "a-2", "held")
        assert status["regions"]["local"]["state"] == "dark"
        assert fleet.running(2) == 2
        proxy.cut()
        proxy.mend()
        await state_is(plane, "a-2", "running")
    finally:
        await proxy.stop()


async def test_cut_off_region_rolls_back_a_bad_candidate_by_itself(programs: Programs, fleet: Fleet) -> None:
    guarded = strategy(
        "name: canary, percentage: 50, manual: true", "name: all, percentage: 100", local_guard="{max_failures: 3}"
    )
    plane, node = await ready(programs, fleet, guarded)
    await change(plane, staged(2))
    await eventually(lambda: fleet.running(2) == 10)
    link = plane.ports["link"]
    await programs.stop(plane)
    sick = [number for number, rate in fleet.rates.items() if rate == 2][:3]
    for number in sick:
        await fleet.say(number, health=pb.ComponentHealth(healthy=False))
    await eventually(lambda: fleet.running(1) == 20)
    assert node.policy.halted() == {"a-2": "3 of 10 agents failed or are unhealthy on it"}
    again = await programs.control_plane(link=link)
    status = await state_is(again, "a-2", "rolled_back")
    assert "rolled back on its own" in status["reason"]
    await eventually(lambda: not node.policy.halted())


def _identity(node: Node) -> Any:
    return node.peer


# ---- without a strategy


async def agent_config(plane: ControlPlane, number: int, fleet: Fleet) -> dict[str, Any]:
    uid = fleet.agents[number].uid
    view: dict[str, Any] = (await shown(plane.fleet, uid.hex()))["config"]
    return view


async def all_say(plane: ControlPlane, fleet: Fleet, status: str) -> None:
    async def check() -> bool:
        return all([(await agent_config(plane, i, fleet))["status"] == status for i in range(len(fleet.agents))])

    await eventually(check)


async def test_refused_change_moves_no_agent_to_another_assignment(programs: Programs, fleet: Fleet) -> None:
    lower = assignment("default", rate=50, priority=-1)
    keep = {"policies": {"config_update": {"rollback_on_error": False}}}
    plane, _ = await ready(programs, fleet, lower, count=10, **keep)
    fleet.refuses = {9}
    await change(plane, assignment("a", rate=9))
    view = await state_is(plane, "a-2", "completed")
    assert view["stages"][0]["percentage"] == 100
    counts = {"targets": 10, "offered": 10, "applied": 0, "failed": 10, "silent": 0, "unhealthy": 0}
    assert view["stages"][0]["counts"] == counts
    await all_say(plane, fleet, "FAILED")
    assert fleet.running(1) == 10, "what it applied last of the same assignment"
    config = await agent_config(plane, 0, fleet)
    assert (config["error_message"], config["assignments"]) == ("9 is not for me", ["a"])
    await eventually(lambda: views.regions(plane.fleet.census)[0]["config_status"].get("FAILED") == 10)
    fleet.refuses = set()
    await plane.actions.retry("a-2", ANN)
    await all_say(plane, fleet, "APPLIED")
    assert fleet.running(9) == 10


async def test_change_without_a_strategy_rolls_back_after_too_many_failures(programs: Programs, fleet: Fleet) -> None:
    plane, _ = await ready(programs, fleet, assignment("default", rate=50, priority=-1), count=10)
    fleet.refuses = {9}
    await change(plane, assignment("a", rate=9))
    view = await state_is(plane, "a-2", "rolled_back")
    assert view["stages"][0]["counts"]["failed"] > 1
    await all_say(plane, fleet, "APPLIED")
    assert fleet.running(1) == 10
    fleet.refuses = {8}
    await change(plane, assignment("a", rate=8))
    await state_is(plane, "a-3", "rolled_back")
    await all_say(plane, fleet, "APPLIED")


async def test_change_without_a_strategy_waits_for_undecided_agents(programs: Programs, fleet: Fleet) -> None:
    plane, _ = await ready(programs, fleet, count=6)
    fleet.silent = {9}
    await change(plane, assignment("a", rate=9))
    view = await state_is(plane, "a-2", "running")
    await eventually(lambda: all(a.config.hash for a in plane.fleet.census.agents.values()))
    view = await plane.status.of("a-2")
    assert view["stages"][0]["gate"]["reason"] in (
        "6 of 6 agents have not answered yet",
        "region local has not applied the policy yet",
    )
    await change(plane, assignment("a", rate=3))
    assert (await state_is(plane, "a-2", "superseded"))["name"] == "a-2"


async def test_last_good_change_survives_several_bad_ones(programs: Programs, fleet: Fleet) -> None:
    plane, _ = await ready(programs, fleet, count=2)
    for number in range(2, 9):
        fleet.refuses.add(number)
        await change(plane, assignment("a", rate=number))
        assert (await state_is(plane, f"a-{number}", "completed"))["stages"][0]["counts"]["failed"] == 2
    await all_say(plane, fleet, "FAILED")
    assert fleet.running(1) == 2


# ---- adding a region

WHERE = """
apiVersion: opamp.io/v1
kind: ConfigTemplate
metadata: {name: placed, version: v1}
spec:
  variables:
    - {name: where, type: string, required: true}
    - {name: rate, type: int, default: 1}
  config: {rate: "{{.rate}}", where: "{{.where}}"}
"""


def variables(region: str) -> str:
    return (
        f"---\napiVersion: opamp.io/v1\nkind: RegionVariables\nmetadata: {{name: {region}}}\n"
        f"spec: {{values: {{where: {region}}}}}\n"
    )


def placed(rate: int) -> str:
    return staged(rate, "a", priority=9).replace("name: basic", "name: placed")


@pytest.mark.parametrize("variables_first", [True, False])
async def test_adding_a_second_region_to_a_staged_assignment(
    programs: Programs, fleet: Fleet, variables_first: bool
) -> None:
    manual = strategy("name: canary, percentage: 25, manual: true", "name: all, percentage: 100")
    plane = await programs.control_plane()
    await apply(plane, TEMPLATE, "---" + WHERE, manual, assignment("default", rate=50), variables("eu"), placed(1))
    eu = await programs.node(plane.ports["link"], region="eu")
    await eventually(lambda: eu.policy.accepted)
    await fleet.join(eu, 4)
    await eventually(lambda: _promotes(plane, "a-1"))
    await state_is(plane, "a-1", "completed")
    assert fleet.running(1) == 4
    if variables_first:
        await change(plane, variables("us"))
    us = await programs.node(plane.ports["link"], region="us")
    await eventually(lambda: us.policy.accepted)
    await fleet.join(us, 8)
    if not variables_first:
        await asyncio.sleep(0.3)
        assert (fleet.running(1), fleet.running(50)) == (4, 0), "they do not fall to a lower priority"
        await change(plane, variables("us"))
    await eventually(lambda: fleet.running(1) == 6)
    await eventually(lambda: fleet.running(50) == 6 if variables_first else True)
    await eventually(lambda: _promotes(plane, "a-2"))
    await state_is(plane, "a-2", "completed")
    await eventually(lambda: fleet.running(1) == 12)


async def _promotes(plane: ControlPlane, name: str) -> bool:
    """Promote a rollout if it waits for a person in its first stage; return whether it did."""
    status = await plane.status.of(name)
    if status["state"] != "running" or "manual promotion" not in status["stages"][0]["gate"]["reason"]:
        return False
    await plane.actions.act(name, "promote", ANN, stage=0)
    return True


async def test_rollout_names_and_retry_numbers_are_unique(programs: Programs, fleet: Fleet) -> None:
    plane, _ = await ready(programs, fleet, MANUAL, count=2)
    await change(plane, staged(2))
    await plane.actions.retry("a-2", ANN)
    await plane.documents.delete("ConfigAssignment", "a")
    await change(plane, staged(3))
    assert (plane.ledger.state.assignments["a"].latest, plane.ledger.state.assignments["a"].retry) == ("a-3", 1)
    await plane.documents.delete("ConfigAssignment", "a")
    await programs.stop(plane)
    again = await programs.control_plane(link=plane.ports["link"])
    await change(again, staged(4))
    assert (again.ledger.state.assignments["a"].latest, again.ledger.state.assignments["a"].retry) == ("a-4", 1)


async def test_many_changes_complete_in_one_look(programs: Programs, fleet: Fleet) -> None:
    plane, _ = await ready(programs, fleet, count=2)
    texts = [assignment(f"b{i}", slot=f"b{i}") for i in range(20)]
    began = asyncio.get_running_loop().time()
    await apply(plane, *texts)
    await eventually(lambda: all(s.rollout and not s.rollout.active for s in plane.ledger.state.assignments.values()))
    assert asyncio.get_running_loop().time() - began < 8, "and not one in each look"


async def test_observed_time_counts_as_stored_only_after_the_write(programs: Programs) -> None:
    clock = ManualClock()
    plane = await programs.opened(clock=clock)
    await up(plane.fleet, ONE)
    await plane.fleet.report(ONE, link_pb2.StatusReport(sequence=1, agents=[entry("x"), entry("y")]))
    held = strategy("name: canary, percentage: 50, manual: true", "name: all, percentage: 100")
    await apply(plane, TEMPLATE, held, assignment("a"))
    await change(plane, staged(2))
    clock.advance(60)
    async with plane.database.write() as connection:
        await connection.execute(sa.text("ALTER TABLE rollouts RENAME TO elsewhere"))
    for _ in range(5):
        clock.advance(11)
        with contextlib.suppress(StoreError):
            await plane.loop.step("a")
    rollout = plane.ledger.state.assignments["a"].rollout
    assert rollout is not None
    assert rollout.observed_s == 0
    async with plane.database.write() as connection:
        await connection.execute(sa.text("ALTER TABLE elsewhere RENAME TO rollouts"))
    clock.advance(1)
    await plane.loop.step("a")
    rollout = plane.ledger.state.assignments["a"].rollout
    assert rollout is not None
    assert rollout.observed_s > 40, "at the first chance"
