import pytest

from relay.cli.listing import COLUMNS, print_documents, print_table
from relay.policy.kinds import KINDS


def test_table_of_documents_by_kind(capsys: pytest.CaptureFixture[str]) -> None:
    print_documents("ConfigTemplate", [{"metadata": {"name": "t", "version": "v1"}}], {})
    print_documents(
        "RolloutStrategy", [{"metadata": {"name": "s"}, "spec": {"stages": [{"name": "one"}, {"name": "two"}]}}], {}
    )
    print_documents("RegionVariables", [{"metadata": {"name": "eu"}, "spec": {"values": {"b": 1, "a": 2}}}], {})
    spec = {
        "template": {"name": "t", "version": "v1"},
        "target_selector": {"agent_ids": ["x"], "attributes": {"os": "l"}},
    }
    print_documents("ConfigAssignment", [{"metadata": {"name": "a"}, "spec": spec}], {})
    drifting = {"agent": "x", "region": "eu", "assignment": "a", "slot": "", "state": "different"}
    print_table("drift", [{**drifting, "differences": [{"path": "a.b"}]}])
    out = capsys.readouterr().out
    for part in ("one,two", "a,b", "attribute os=l, 1 agent ids", "a.b"):
        assert part in out


def test_every_kind_has_its_columns() -> None:
    assert COLUMNS.keys() == KINDS.keys()
