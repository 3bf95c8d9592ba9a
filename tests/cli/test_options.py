from pathlib import Path

import pytest

from relay.cli.options import read_files, usage


def test_files_and_folders_are_read(tmp_path: Path) -> None:
    for name in ("b.yaml", "a.yml", "c.json", "d.txt"):
        (tmp_path / name).write_text(name)
    assert [s["text"] for s in read_files([str(tmp_path)])] == ["a.yml", "b.yaml", "c.json"]
    assert read_files([str(tmp_path / "d.txt")])[0]["source"].endswith("d.txt")


def test_unreadable_input_is_a_usage_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"\xff")
    (tmp_path / "empty").mkdir()
    for name, reason in (("none", "No such file"), ("binary.yaml", "not UTF-8"), ("empty", "contains no .yaml")):
        with pytest.raises(SystemExit) as caught:
            read_files([str(tmp_path / name)])
        assert caught.value.code == 2
        assert reason in capsys.readouterr().err
    assert usage("wrong").code == 2
