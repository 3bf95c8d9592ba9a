from __future__ import annotations

import dataclasses

from relay.control.revisions import Advance, Revisions
from relay.control.rollouts.contents import SAME, Contents, content_hash
from relay.control.rollouts.model import Rollout
from relay.control.rollouts.targets import Target
from tests.conftest import TEMPLATE, Programs, apply, assignment


async def going(programs: Programs) -> tuple[Rollout, Advance]:
    """From rate 1 to rate 2."""
    plane = await programs.control_plane()
    await apply(plane, TEMPLATE, assignment("a", rate=1))
    await apply(plane, assignment("a", rate=2))
    revisions: Revisions = plane.revisions
    rollout = revisions.states["a"].rollout
    assert rollout is not None
    return rollout, revisions.same()


async def test_what_an_agent_gets_and_had(programs: Programs) -> None:
    rollout, advance = await going(programs)
    made = Contents(rollout, advance)
    new, old = made.candidate("eu"), made.stable("eu")
    assert new
    assert old
    assert new != old
    assert made.of(Target("eu", "x", chosen=True, had=True)) == (new, old)
    assert made.of(Target("eu", "x", chosen=True, had=False)) == (new, None)
    assert made.of(Target("eu", "x", chosen=False, had=True)) == (None, old)
    back = dataclasses.replace(rollout, candidate=rollout.stable or rollout.candidate)
    assert Contents(back, advance).of(Target("eu", "x", chosen=True, had=True)) == SAME


async def test_a_revision_whose_template_is_gone_or_whose_values_do_not_resolve(programs: Programs) -> None:
    rollout, advance = await going(programs)
    candidate = rollout.candidate
    assert content_hash(advance, dataclasses.replace(candidate, values={"rate": "many"}), "eu") is None
    assert content_hash(advance, dataclasses.replace(candidate, template="gone@v1"), "eu") is None
    broken = dataclasses.replace(rollout, candidate=dataclasses.replace(candidate, values={"rate": "many"}))
    assert Contents(broken, advance).of(Target("eu", "x", chosen=True, had=True)) is None
