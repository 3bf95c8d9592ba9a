import pytest

from relay.cli.output import show, table


def test_table_columns_fit_their_content(capsys: pytest.CaptureFixture[str]) -> None:
    table(("name", "ok"), [("long name", True), ("x", None), ("", ["a", "b"]), ("y", False)])
    assert capsys.readouterr().out == "NAME       OK\nlong name  yes\nx          -\n-          a,b\ny          no\n"


def test_agent_text_cannot_contain_control_sequences(capsys: pytest.CaptureFixture[str]) -> None:
    table(("error",), [("bad\x1b[31mRED\nforged  row",)])
    assert capsys.readouterr().out == "ERROR\nbad\\x1b[31mRED\\nforged  row\n"


def test_json_and_yaml(capsys: pytest.CaptureFixture[str]) -> None:
    show({"b": "é", "a": 1}, "json")
    show({"b": "é", "a": 1}, "yaml")
    assert capsys.readouterr().out == '{\n  "b": "é",\n  "a": 1\n}\nb: é\na: 1\n'
