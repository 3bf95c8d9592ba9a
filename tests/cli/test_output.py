import pytest

from relay.cli.output import show, table


def test_tables_are_as_wide_as_needed(capsys: pytest.CaptureFixture[str]) -> None:
    table(("name", "ok"), [("long name", True), ("x", None), ("", ["a", "b"]), ("y", False)])
    assert capsys.readouterr().out == "NAME       OK\nlong name  yes\nx          -\n-          a,b\ny          no\n"


def test_an_agent_s_words_cannot_move_the_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    table(("error",), [("bad\x1b[31mRED\nforged  row",)])
    assert capsys.readouterr().out == "ERROR\nbad\\x1b[31mRED\\nforged  row\n"


def test_json_and_yaml(capsys: pytest.CaptureFixture[str]) -> None:
    show({"b": "é", "a": 1}, "json")
    show({"b": "é", "a": 1}, "yaml")
    assert capsys.readouterr().out == '{\n  "b": "é",\n  "a": 1\n}\nb: é\na: 1\n'
