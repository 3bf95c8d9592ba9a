import pytest

from relay.cli.resources import plural_of


def test_kinds_are_found_by_any_name() -> None:
    assert plural_of("assignment") == plural_of("ConfigAssignments") == "assignments"
    assert plural_of("variables") == "regionvariables"
    with pytest.raises(SystemExit, match="2"):
        plural_of("assignmet")
