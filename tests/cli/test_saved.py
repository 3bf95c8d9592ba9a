from __future__ import annotations

from pathlib import Path

import pytest

from relay.cli.saved import TokenFileError, read_token, save, saved_file, token_for

ONE, TWO = "https://one:443", "http://127.0.0.1:4340"


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPAMPCTL_TOKEN", "OPAMPCTL_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPAMPCTL_CONFIG_DIR", str(tmp_path / "config"))


def test_tokens_are_kept_by_server_for_the_owner_alone() -> None:
    assert token_for(ONE) == ""
    save(ONE, "a")
    save(TWO, "b")
    assert (token_for(ONE), token_for(TWO), token_for("https://three:443")) == ("a", "b", "")
    assert saved_file().stat().st_mode & 0o777 == 0o600
    assert saved_file().parent.stat().st_mode & 0o777 == 0o700
    save(ONE, "")
    assert (token_for(ONE), token_for(TWO)) == ("", "b")


def test_environment_has_precedence_and_then_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(ONE, "saved")
    file = tmp_path / "token"
    file.write_text("of-file\n")
    monkeypatch.setenv("OPAMPCTL_TOKEN_FILE", str(file))
    assert token_for(ONE) == "of-file"
    monkeypatch.setenv("OPAMPCTL_TOKEN", "of-environment")
    assert token_for(ONE) == "of-environment"


@pytest.mark.parametrize("content", [b"", b"a\nb", b"\xff", "名".encode()])
def test_files_that_hold_no_token(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "token").write_bytes(content)
    with pytest.raises(TokenFileError, match="not a token"):
        read_token(str(tmp_path / "token"))
    with pytest.raises(TokenFileError, match="No such file"):
        read_token(str(tmp_path / "missing"))


def test_damaged_file_counts_as_empty() -> None:
    save(ONE, "a")
    for damage in ("{", "[]"):
        saved_file().write_text(damage)
        assert token_for(ONE) == ""


def test_where_tokens_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPAMPCTL_CONFIG_DIR")
    monkeypatch.setenv("XDG_CONFIG_HOME", "/x")
    assert saved_file() == Path("/x/opampctl/tokens.json")
    monkeypatch.delenv("XDG_CONFIG_HOME")
    assert saved_file() == Path.home() / ".config/opampctl/tokens.json"
