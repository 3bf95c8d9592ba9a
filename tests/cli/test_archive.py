from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path
from typing import Any

import pytest

from relay.cli.archive import BadArchive, Reader, Writer

CONTENT = b"package" * 100_000
NAME = hashlib.sha256(CONTENT).hexdigest()
PACKAGE: dict[str, Any] = {"name": "a", "version": "1", "files": [{"sha256": NAME, "size": len(CONTENT)}]}


def written(path: Path, content: bytes = CONTENT) -> Path:
    with Writer(path, [PACKAGE], [{"kind": "X"}]) as writer:
        writer.add_file(NAME, len(content), io.BytesIO(content))
        writer.finish()
    return path


def test_archive_round_trip(tmp_path: Path) -> None:
    with Reader(written(tmp_path / "a.tar")) as reader:
        reader.verify()
        assert (reader.packages, reader.documents) == ([PACKAGE], [{"kind": "X"}])
        assert b"".join(reader.read(NAME)) == CONTENT
        assert reader.open(NAME).read() == CONTENT


def test_writing_a_file_with_another_hash_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadArchive, match="has a different SHA-256"):
        written(tmp_path / "a.tar", b"other")


def test_changed_or_missing_entries_are_detected(tmp_path: Path) -> None:
    path = written(tmp_path / "a.tar")
    content = bytearray(path.read_bytes())
    content[content.index(b"packagepackage") + 5] ^= 1
    path.write_bytes(content)
    with Reader(path) as changed, pytest.raises(BadArchive, match="is corrupt"):
        changed.verify()
    with Writer(tmp_path / "b.tar", [PACKAGE], []) as writer:
        writer.finish()
    with Reader(tmp_path / "b.tar") as short, pytest.raises(BadArchive, match="is missing"):
        short.verify()


def test_files_that_are_not_archives_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")
    with pytest.raises(BadArchive):
        Reader(tmp_path / "text")
    with pytest.raises(BadArchive):
        Reader(tmp_path / "none")
    with tarfile.open(tmp_path / "c.tar", "w") as tar:
        entry = tarfile.TarInfo("manifest.json")
        entry.size = 2
        tar.addfile(entry, io.BytesIO(b"{}"))
    with pytest.raises(BadArchive, match="not in the format"):
        Reader(tmp_path / "c.tar")
    with tarfile.open(tmp_path / "d.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("other"))
    with pytest.raises(BadArchive, match="not an archive of packages"):
        Reader(tmp_path / "d.tar")
