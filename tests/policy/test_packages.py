from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from relay.policy.model import Selector
from relay.policy.packages import (
    PackageAssignment,
    PackageFile,
    PublishedPackage,
    all_packages_hash,
    package_hash,
    pick,
)

LINUX: dict[str, Any] = {"os.type": "linux"}


def file(digit: str = "1", **more: Any) -> PackageFile:
    return PackageFile(sha256=digit * 64, size=1, **more)


def version(*files: PackageFile, name: str = "agent", number: str = "1") -> PublishedPackage:
    return PublishedPackage(name=name, version=number, files=list(files))


def test_version_pin() -> None:
    one, more = version(file()), version(file(), file("2", attributes=LINUX))
    assert one.key == more.key == "agent@1"
    assert one.pin.startswith("agent@1@")
    assert one.pin != more.pin


def test_closest_file_is_picked_for_a_whole_set() -> None:
    agent = version(file("1"), file("2", attributes=LINUX))
    every = pick([agent], lambda f: True)
    assert every is not None
    assert [f.sha256[0] for _, f in every.files] == ["2"]
    assert pick([agent, version(file("3", attributes=LINUX), name="b")], lambda f: not f.attributes) is None


def test_hashes_cover_everything_offered() -> None:
    agent = version(file())
    signed = file(signature="00")
    assert package_hash(agent, file()) == package_hash(agent, file())
    assert package_hash(agent, file()) != package_hash(agent, signed)
    assert package_hash(agent, file()) != package_hash(version(file(), number="2"), file())
    chosen = pick([agent], lambda _: True)
    assert chosen is not None
    assert len({all_packages_hash(chosen, *more) for more in ((), (1,), (0, 1))}) == 3


@pytest.mark.parametrize("name", ["", "a/b", "..", "a\x00b", "n" * 129, "-a", "ä"])
def test_names_that_could_be_paths_are_refused(name: str) -> None:
    with pytest.raises(ValidationError):
        version(file(), name=name)
    with pytest.raises(ValidationError):
        version(file(), number=name)


def test_two_files_with_equal_attributes_are_refused() -> None:
    with pytest.raises(ValidationError, match="two files match the same agents"):
        version(file("1"), file("2"))


def test_assignment_names_a_package_once() -> None:
    def assignment(*names: str) -> PackageAssignment:
        packages = [{"name": n, "version": "0.158.0"} for n in names]
        return PackageAssignment.model_validate(
            {
                "apiVersion": "opamp.io/v1",
                "kind": "PackageAssignment",
                "metadata": {"name": "agents"},
                "spec": {"packages": packages, "target_selector": {}, "priority": 0, "strategy": None},
            }
        )

    assert assignment("otelcol").key == "agents"
    with pytest.raises(ValidationError, match="otelcol is listed twice"):
        assignment("otelcol", "otelcol")
    with pytest.raises(ValidationError):
        assignment()


@pytest.mark.parametrize("value", ["a" * 300, "a\nb", float("inf")])
def test_invalid_attributes_are_refused(value: Any) -> None:
    with pytest.raises(ValidationError):
        file(attributes={"os.type": value})


def test_file_matches_attributes() -> None:
    assert file(attributes=LINUX).selector.attributes == LINUX
    assert file().selector.identity == Selector().identity
