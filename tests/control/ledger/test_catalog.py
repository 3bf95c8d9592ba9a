import pytest

from relay.control.ledger.catalog import Catalog, PackageVersion, find
from relay.errors import NotFound
from relay.policy.model import RegionVariables
from relay.policy.packages import PackageFile, PublishedPackage


def variables(region: str) -> RegionVariables:
    return RegionVariables.model_validate(
        {
            "apiVersion": "opamp.io/v1",
            "kind": "RegionVariables",
            "metadata": {"name": region},
            "spec": {"values": {"a": 1}},
        }
    )


def test_changes_do_not_modify_the_original_catalog() -> None:
    empty = Catalog()
    one = empty.put(variables("eu"), variables("us"))
    other = one.without("RegionVariables", "eu")
    assert (set(empty.variables), set(one.variables), set(other.variables)) == (set(), {"eu", "us"}, {"us"})
    with pytest.raises(KeyError):
        other.without("RegionVariables", "eu")


def test_package_versions_are_in_the_catalog() -> None:
    package = PublishedPackage(name="otelcol", version="1", files=[PackageFile(sha256="1" * 64, size=1)])
    good = Catalog().put_packages(PackageVersion(package, 1, "ann"))
    bad = good.put_packages(PackageVersion(package, 1, "ann", yanked="crashes"))
    assert not good.yanked
    assert bad.yanked == {"otelcol@1"}
    assert not bad.without_package("otelcol@1").packages
    assert list(good.all_assignments()) == []
    assert (good.package_files(), Catalog().package_files()) == ({"1" * 64: 1}, {})


def test_unknown_kind() -> None:
    with pytest.raises(NotFound, match="there is no kind Pod; the kinds are ConfigTemplate"):
        Catalog().of("Pod")


def test_single_document() -> None:
    catalog = Catalog().put(variables("eu"))
    assert find(catalog, "RegionVariables", "eu") == variables("eu")
    with pytest.raises(NotFound, match="there is no RegionVariables us"):
        find(catalog, "RegionVariables", "us")
