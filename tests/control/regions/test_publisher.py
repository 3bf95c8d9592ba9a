import asyncio
from collections.abc import Sequence

import pytest

from relay.control.app import ControlPlane
from relay.control.ledger.state import State
from relay.control.regions import publisher as module
from relay.control.regions.resources import AccessResources
from relay.control.regions.resources import resources as held_by
from relay.policy.snapshot import ConfigContent, build
from tests.conftest import TEMPLATE, Programs, apply, assignment, eventually


async def test_manifest_number_grows_only_with_changes(programs: Programs) -> None:
    plane = await programs.control_plane()
    assert (await plane.publisher.policy("eu")).version == (1, 1)
    woken = asyncio.Event()
    plane.publisher.watch(woken)
    await apply(plane, TEMPLATE, assignment("a"))
    await eventually(woken.is_set)
    assert (await plane.publisher.policy("eu")).version == (1, 2)
    assert (await plane.publisher.policy("eu")).version == (1, 2)
    await apply(plane, assignment("us-only", selector="{labels: {region: us}}", priority=1))
    assert (await plane.publisher.policy("eu")).version == (1, 2), "what cannot concern a region does not reach it"
    assert (await plane.publisher.policy("us")).version == (1, 1)
    plane.publisher.unwatch(woken)


async def test_published_policy_compiles_and_keeps_pinned_resources(programs: Programs) -> None:
    plane = await programs.opened()
    variables = (
        "---\napiVersion: opamp.io/v1\nkind: RegionVariables\nmetadata: {name: eu}\nspec: {values: {level: %s}}\n"
    )
    strategy = (
        "---\napiVersion: opamp.io/v1\nkind: RolloutStrategy\nmetadata: {name: canary}\n"
        "spec: {stages: [{name: a, percentage: 5}]}\n"
    )
    await apply(plane, TEMPLATE, strategy, assignment("a"), variables % "debug")
    await apply(plane, assignment("a") + "  strategy: canary\n")
    await apply(plane, variables % "warn")
    policy = await plane.publisher.policy("eu")
    snapshot = build(policy.resources)
    assert snapshot.rejected == {}
    (compiled,) = snapshot.assignments
    ((change, candidate),) = compiled.branches
    assert (change.id, change.threshold) == ("a-2", 0)
    assert isinstance(compiled.stable, ConfigContent)
    assert isinstance(candidate, ConfigContent)
    assert compiled.stable.resolved.values["level"] == "debug"
    assert candidate.resolved.values["level"] == "warn"
    assert len([name for name in policy.resources if name.startswith("RegionVariables/")]) == 2


async def test_changes_elsewhere_do_not_affect_an_assignment(plane: ControlPlane) -> None:
    await apply(plane, TEMPLATE, assignment("a"), assignment("b", priority=1))
    version = (await plane.publisher.policy("eu")).version
    assert plane.publisher.has("eu", version, "a")
    await apply(plane, assignment("b", rate=2, priority=1))
    assert plane.publisher.has("eu", version, "a"), "it is what it was"
    assert not plane.publisher.has("eu", version, "b"), "its change has yet to be published"
    newer = (await plane.publisher.policy("eu")).version
    assert not plane.publisher.has("eu", version, "b")
    assert plane.publisher.has("eu", newer, "b")
    assert plane.publisher.has("us", version, "b"), "nobody of it ever asked"


async def test_failing_region_is_retried_and_does_not_stop_others(
    programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    plane = await programs.control_plane()
    await plane.publisher.policy("eu")
    await plane.publisher.policy("us")
    real, broken = held_by, {"eu"}

    def resources(state: State, region: str, keys: Sequence[bytes], access: AccessResources) -> dict[str, bytes]:
        if region in broken:
            raise RuntimeError("boom")
        return real(state, region, keys, access)

    monkeypatch.setattr(module, "resources", resources)
    await apply(plane, TEMPLATE, assignment("a"))
    await eventually(lambda: plane.publisher.problems)
    assert "policy of region eu is not published: boom" in plane.condition.degraded
    assert (await plane.publisher.policy("us")).version == (1, 2)
    broken.clear()
    await eventually(lambda: not plane.publisher.problems)
    assert (await plane.publisher.policy("eu")).version == (1, 2)
