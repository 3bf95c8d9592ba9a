import pytest

from relay.cli.listing import tables


def test_documents_of_each_kind_have_their_columns(capsys: pytest.CaptureFixture[str]) -> None:
    tables("templates", [{"metadata": {"name": "t", "version": "v1"}}])
    tables("strategies", [{"metadata": {"name": "s"}, "spec": {"stages": [{"name": "one"}, {"name": "two"}]}}])
    tables("regionvariables", [{"metadata": {"name": "eu"}, "spec": {"values": {"b": 1, "a": 2}}}])
    spec = {
        "template": {"name": "t", "version": "v1"},
        "target_selector": {"agent_ids": ["x"], "attributes": {"os": "l"}},
    }
    tables("assignments", [{"metadata": {"name": "a"}, "spec": spec}])
    drifting = {"agent": "x", "region": "eu", "assignment": "a", "slot": "", "state": "different"}
    tables("drift", [{**drifting, "differences": [{"path": "a.b"}]}])
    out = capsys.readouterr().out
    for part in ("one,two", "a,b", "attribute os=l, 1 agent ids", "a.b"):
        assert part in out
