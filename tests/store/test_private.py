from __future__ import annotations

from pathlib import Path

from relay.store.private import make_private


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_folder_and_all_in_it_are_its_owners_alone(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    (folder / "packages").mkdir(parents=True, mode=0o755)
    files = [folder / "node.sqlite3", folder / "packages" / "file"]
    for file in (*files, elsewhere):
        file.write_text("secret")
        file.chmod(0o644)
    (folder / "link").symlink_to(elsewhere)
    make_private(folder)
    assert [mode(folder), mode(folder / "packages")] == [0o700, 0o700]
    assert [mode(file) for file in files] == [0o600, 0o600]
    assert mode(elsewhere) == 0o644, "what a link points at is not ours"


def test_folder_is_made(tmp_path: Path) -> None:
    make_private(tmp_path / "a" / "b")
    assert mode(tmp_path / "a" / "b") == 0o700
    (tmp_path / "file").write_text("")
    make_private(tmp_path / "file" / "folder")  # who opens it says what is wrong
