from __future__ import annotations

import dataclasses
from typing import Any

from relay.control.rollouts.assignment import Advance
from relay.control.rollouts.contents import Contents, Given, content_hash
from relay.control.rollouts.model import GlobalConfig, GlobalPackages, Rollout
from relay.control.rollouts.targets import Target
from relay.policy.packages import PackageFile, PublishedPackage
from relay.policy.selector import Facts
from relay.policy.snapshot import package_resource
from tests.conftest import TEMPLATE, Programs, apply, assignment
from tests.control.rollouts.made import rollout

EU = Facts("x", {}, {})


def target(**sides: bool) -> Target:
    return Target("eu", EU, **{"falls": False, **sides})


async def going(programs: Programs) -> tuple[Rollout, Advance]:
    """From rate 1 to rate 2."""
    plane = await programs.control_plane()
    await apply(plane, TEMPLATE, assignment("a", rate=1))
    await apply(plane, assignment("a", rate=2))
    found = plane.revisions.states["a"].rollout
    assert found is not None
    return found, plane.revisions.same()


async def test_what_an_agent_gets_and_had(programs: Programs) -> None:
    change, advance = await going(programs)
    made = Contents(change, advance)
    both = made.of(target(chosen=True, had=True))
    assert both is not None
    new, old = both
    assert new is not None
    assert old is not None
    assert new != old
    assert made.candidate("eu", EU) == new
    assert made.of(target(chosen=True, had=False)) == (new, None)
    assert made.of(target(chosen=False, had=True)) == (None, old)
    back = dataclasses.replace(change, candidate=change.stable or change.candidate)
    assert Contents(back, advance).of(target(chosen=True, had=True)) == (old, old)


async def test_a_revision_whose_template_is_gone_or_whose_values_do_not_resolve(programs: Programs) -> None:
    change, advance = await going(programs)
    candidate = change.candidate
    assert isinstance(candidate, GlobalConfig)
    wrong = dataclasses.replace(candidate, values={"rate": "many"})
    assert content_hash(advance, wrong, "eu") is None
    assert content_hash(advance, dataclasses.replace(candidate, template="gone@v1"), "eu") is None
    broken = Contents(dataclasses.replace(change, candidate=wrong), advance)
    assert broken.of(target(chosen=True, had=True)) is None
    assert not broken.renders("eu")


def package(version: str, *files: PackageFile) -> PublishedPackage:
    return PublishedPackage(name="agent", version=version, files=list(files))


def test_packages_differ_by_what_the_agent_is() -> None:
    linux: dict[str, Any] = {"os.type": "linux"}
    windows: dict[str, Any] = {"os.type": "windows"}
    one = package("1", PackageFile(sha256="1" * 64, size=1, attributes=linux),
                  PackageFile(sha256="2" * 64, size=1, attributes=windows))  # fmt: skip
    two = package("2", PackageFile(sha256="3" * 64, size=1, attributes=linux))
    contents = dict(package_resource(p) for p in (one, two))
    advance = Advance({}, {}, contents)
    change = rollout(candidate=GlobalPackages((two.pin,)), stable=GlobalPackages((one.pin,)))
    made = Contents(change, advance)

    def of(**attributes: str) -> tuple[Given | None, Given | None] | None:
        return made.of(Target("eu", Facts("x", {}, attributes), chosen=True, had=True, falls=False))

    on_linux = of(**linux)
    assert on_linux is not None
    assert on_linux[0] != on_linux[1]
    on_windows = of(**windows)
    assert on_windows is not None
    assert on_windows[0] == on_windows[1] is not None, "there is no file for it: it stays with what it has"
    assert made.renders("eu")
    gone = Contents(change, Advance({}, {}, {}))
    assert gone.of(Target("eu", Facts("x", {}, linux), chosen=True, had=True, falls=False)) == (None, None)
