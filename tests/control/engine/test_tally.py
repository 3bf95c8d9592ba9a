"""The tally of all targets, compared with judging each separately."""

from __future__ import annotations

import dataclasses
from collections import Counter

from relay.control.engine.tally import MAX_TROUBLED, Tally
from relay.control.fleet.targets import Targets
from relay.control.rollouts.counts import Counts
from relay.control.rollouts.rollout import ALL, Rollout
from relay.opamp.offer import Failure, OfferedSlot
from relay.testing.clock import ManualClock
from tests.control.fleet.test_census import Stand
from tests.control.fleet.test_targets import state
from tests.control.rollouts.made import revision, rollout, strategy

NOW_MS = 1_000_000


def tally(stand: Stand, one: Rollout, now_ms: int = NOW_MS) -> Tally:
    made = Tally(stand.census, one, state(one), now_ms=now_ms)
    for group in Targets(stand.census, clock=ManualClock()).groups(one, state(one)):
        made.add(group)
    return made


def going(**more: object) -> Rollout:
    values = {"thresholds": ALL, "stage_started_ms": NOW_MS, "spec": strategy(max_silent="10m"), **more}
    return rollout(revision(2), **values)  # type: ignore[arg-type]


def test_agents_are_counted_by_region() -> None:
    stand = Stand()
    for number in range(5):
        stand.put(f"a{number}", region="eu" if number < 2 else "us")
    assert tally(stand, going()).counts() == {
        "eu": Counts(targets=2, undecided=2),
        "us": Counts(targets=3, undecided=3),
    }
    late = tally(stand, going(), NOW_MS + 600_000)
    assert late.counts()["us"] == Counts(targets=3, silent=3)
    assert Counter(t.state for t in late.troubled) == {"silent": 5}


def test_agents_below_the_threshold_are_on_the_candidate() -> None:
    stand = Stand()
    for number in range(200):
        stand.put(f"a{number}")
    half = tally(stand, going(thresholds={"": 1 << 51})).counts()["eu"]
    assert 70 < half.targets < 130
    assert tally(stand, going(thresholds={})).counts()["eu"].targets == 0


def test_some_troubled_agents_are_named_with_their_messages() -> None:
    stand = Stand()
    one = going()
    (group,) = [*_groups(stand, one)] or [None]
    assert group is None
    for number in range(MAX_TROUBLED + 5):
        agent = stand.put(f"a{number}")
        (group, *_) = _groups(stand, one)
        assert group.contents is not None
        slot, content = group.contents[0] or ("", b"")
        offering = type(agent.config)()
        offering.hash, offering.slots, offering.baseline = b"h", (OfferedSlot(slot, "a", content),), (True,)
        offering.failures = (Failure(slot, content, 0, f"words of {number}", 1),)
        agent.config = offering
    seen = tally(stand, one)
    assert seen.counts()["eu"] == Counts(targets=25, offered=25, failed=25)
    assert len(seen.troubled) == MAX_TROUBLED
    assert all(t.message == f"words of {t.agent[1:]}" for t in seen.troubled)


def test_agent_of_a_gone_node_is_away() -> None:
    stand = Stand()
    agent = stand.put("a")
    stand.census.nodes["eu/one"].departed = True
    last = dataclasses.replace(going(), stage=2)
    assert tally(stand, last).counts()["eu"] == Counts(targets=1, silent=1)
    assert agent.connected


def _groups(stand: Stand, one: Rollout) -> list:  # type: ignore[type-arg]
    return list(Targets(stand.census, clock=ManualClock()).groups(one, state(one)))
