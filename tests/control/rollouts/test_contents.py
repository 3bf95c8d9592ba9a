from __future__ import annotations

import dataclasses
from typing import Any

from relay.control.rollouts.contents import Contents, Given, content_hash, renders
from relay.control.rollouts.revision import GlobalConfig, GlobalPackages, Pinned
from relay.control.rollouts.targets import Target
from relay.policy.packages import PackageFile, PublishedPackage
from relay.policy.resources import package_resource
from relay.policy.selector import Facts
from tests.control.rollouts.made import revision, rollout
from tests.policy.made import RATE, template

EU = Facts("x", {}, {})


def target(**sides: bool) -> Target:
    return Target("eu", EU, **{"falls": False, **sides})


PINNED = Pinned({"t@v1": template({"rate": "{{.rate}}"}, RATE)}, {})


def config(rate: object) -> GlobalConfig:
    return dataclasses.replace(revision(1), values={"rate": rate})


def test_candidate_and_stable_contents() -> None:
    change = rollout(config(2), stable=config(1))
    made = Contents(change, PINNED)
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
    assert Contents(back, PINNED).of(target(chosen=True, had=True)) == (old, old)


def test_unresolvable_revision() -> None:
    wrong = config("many")
    assert content_hash(PINNED, config(1), "eu") is not None
    assert content_hash(PINNED, wrong, "eu") is None
    assert content_hash(PINNED, dataclasses.replace(config(1), template="gone@v1"), "eu") is None
    broken = Contents(rollout(wrong, stable=config(1)), PINNED)
    assert broken.of(target(chosen=True, had=True)) is None
    assert not broken.renders("eu")


def package(version: str, *files: PackageFile) -> PublishedPackage:
    return PublishedPackage(name="agent", version=version, files=list(files))


def test_package_contents_depend_on_the_agent() -> None:
    linux: dict[str, Any] = {"os.type": "linux"}
    windows: dict[str, Any] = {"os.type": "windows"}
    one = package("1", PackageFile(sha256="1" * 64, size=1, attributes=linux),
                  PackageFile(sha256="2" * 64, size=1, attributes=windows))  # fmt: skip
    two = package("2", PackageFile(sha256="3" * 64, size=1, attributes=linux))
    contents = dict(package_resource(p) for p in (one, two))
    pinned = Pinned({}, contents)
    change = rollout(candidate=GlobalPackages((two.pin,)), stable=GlobalPackages((one.pin,)))
    made = Contents(change, pinned)

    def of(**attributes: str) -> tuple[Given | None, Given | None] | None:
        return made.of(Target("eu", Facts("x", {}, attributes), chosen=True, had=True, falls=False))

    on_linux = of(**linux)
    assert on_linux is not None
    assert on_linux[0] != on_linux[1]
    on_windows = of(**windows)
    assert on_windows is not None
    assert on_windows[0] == on_windows[1] is not None, "there is no file for it: it stays with what it has"
    assert made.renders("eu")
    gone = Contents(change, Pinned({}, {}))
    assert gone.of(Target("eu", Facts("x", {}, linux), chosen=True, had=True, falls=False)) == (None, None)


def test_revisions_that_a_region_can_produce() -> None:
    assert renders(PINNED, config(1), "eu")
    assert not renders(PINNED, config("many"), "eu")
    assert renders(PINNED, GlobalPackages(()), "eu"), "packages are the same everywhere"


def test_contents_are_computed_once_per_look() -> None:
    made = Contents(rollout(config(2), stable=None), PINNED)
    assert made.candidate("eu", EU) == made.candidate("eu", EU)
    assert made.of(target(chosen=True, had=False)) == (made.candidate("eu", EU), None)


def test_agents_of_one_kind_share_contents() -> None:
    one = package("1", PackageFile(sha256="1" * 64, size=1))
    made = Contents(rollout(GlobalPackages((one.pin,)), stable=None), Pinned({}, dict([package_resource(one)])))
    assert made.candidate("eu", EU) == made.candidate("us", Facts("y", {}, {"os.type": "linux"})) is not None
