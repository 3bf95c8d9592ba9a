import pytest

from relay.control.rollouts.revision import GlobalConfig, GlobalPackages, Pinned, revision_from_plain
from relay.policy.model import RegionVariables, Selector
from relay.policy.packages import PackageFile, PublishedPackage
from relay.policy.published import CONFIG, PACKAGES
from relay.policy.resources import package_resource, variables_resource
from tests.control.rollouts.made import revision
from tests.policy.made import RATE, template

PACKAGE = PublishedPackage(name="otelcol", version="1", files=[PackageFile(sha256="1" * 64, size=1)])


def test_regions_pin_their_own_variables() -> None:
    one = revision(1, variables={"eu": "eu@1"})
    assert (one.for_region("eu").variables, one.for_region("us").variables) == ("eu@1", "")
    assert one.pins == {"RegionVariables/eu@1"}
    assert (one.kind, one.title) == (CONFIG, "t@v1")
    assert not one.versions
    assert revision_from_plain(one.plain()) == one
    assert revision_from_plain(None) is None


def test_packages_are_the_same_in_every_region() -> None:
    packages = GlobalPackages((PACKAGE.pin,), Selector(labels={"tier": "prod"}), 3, prefetch=True)
    assert packages.for_region("eu") == packages.for_region("us")
    assert (packages.kind, packages.title) == (PACKAGES, "otelcol@1")
    assert packages.versions == {"otelcol@1"}
    assert packages.pins == {f"Package/{PACKAGE.pin}"}
    assert (packages.slot, packages.observe_only) == ("", False)
    assert revision_from_plain(packages.plain()) == packages


def test_renderer_is_ignored_between_revisions() -> None:
    new, old = revision(1), GlobalConfig("t@v1", "00", {"rate": 1}, {}, 0)
    assert new.as_rendered_by(old) == old
    packages = GlobalPackages(())
    assert new.as_rendered_by(packages) == new
    assert packages.as_rendered_by(old) == packages


def test_pins_of_revisions() -> None:
    variables = RegionVariables.model_validate(
        {
            "apiVersion": "opamp.io/v1",
            "kind": "RegionVariables",
            "metadata": {"name": "eu"},
            "spec": {"values": {"rate": 0.5}},
        }
    )
    name, payload = variables_resource(variables)
    held = template({"rate": "{{.rate}}"}, RATE)
    pinned = Pinned({"t@v1": held}, dict([(name, payload), package_resource(PACKAGE)]))
    of_eu = revision(1, variables={"eu": name.partition("/")[2], "us": "us@gone"})
    assert pinned.inputs(of_eu, "eu") == (held, {"rate": 0.5})
    assert pinned.inputs(of_eu, "us") == (held, {}), "what is gone has no values"
    assert pinned.inputs(of_eu, "asia") == (held, {})
    assert pinned.packages(GlobalPackages((PACKAGE.pin, "gone@1@00"))) == [PACKAGE]
    with pytest.raises(KeyError):
        Pinned({}, {}).inputs(of_eu, "eu")
