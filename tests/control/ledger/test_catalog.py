import pytest

from relay.control.ledger.catalog import Catalog
from relay.errors import NotFound


def test_a_copy_can_be_changed_by_itself() -> None:
    catalog = Catalog()
    copy = catalog.copy()
    copy.of("PackageAssignment")["x"] = object()
    assert not catalog.package_assignments
    assert len(list(copy.all_assignments())) == 1


def test_an_unknown_kind() -> None:
    with pytest.raises(NotFound, match="there is no kind Pod; there are ConfigTemplate"):
        Catalog().of("Pod")
