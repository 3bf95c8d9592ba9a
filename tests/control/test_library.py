import pytest

from relay.control.library import Library
from relay.errors import NotFound


def test_a_copy_can_be_changed_by_itself() -> None:
    library = Library()
    copy = library.copy()
    copy.of("PackageAssignment")["x"] = object()
    assert not library.package_assignments
    assert len(list(copy.all_assignments())) == 1


def test_an_unknown_kind() -> None:
    with pytest.raises(NotFound, match="there is no kind Pod; there are ConfigTemplate"):
        Library().of("Pod")
