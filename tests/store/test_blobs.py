from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest

from relay.errors import StoreError
from relay.store.blobs import BlobStore

CONTENT = b"package" * 1000
NAME = hashlib.sha256(CONTENT).hexdigest()


def put(store: BlobStore, content: bytes) -> str:
    name = hashlib.sha256(content).hexdigest()
    store.append(name, content)
    assert store.finish(name)
    return name


def test_file_is_available_once_complete_and_verified(tmp_path: Path) -> None:
    store = BlobStore(tmp_path / "blobs", 1 << 20)
    store.append(NAME, CONTENT[:100])
    assert (store.is_verified(NAME), store.partial_bytes(NAME)) == (False, 100)
    again = BlobStore(tmp_path / "blobs", 1 << 20)
    assert again.partial_bytes(NAME) == 100, "a killed process goes on where it was"
    again.append(NAME, CONTENT[100:])
    assert again.finish(NAME)
    assert (again.is_verified(NAME), again.verified, again.partial_bytes(NAME)) == (True, [NAME], 0)
    assert again.path(NAME).read_bytes() == CONTENT


def test_file_with_a_wrong_hash_is_removed(tmp_path: Path) -> None:
    store = BlobStore(tmp_path, 1 << 20)
    store.append(NAME, b"other")
    assert not store.finish(NAME)
    assert (store.used_bytes, list(tmp_path.iterdir())) == (0, [])


def test_files_are_verified_again_after_a_restart(tmp_path: Path) -> None:
    put(BlobStore(tmp_path, 1 << 20), CONTENT)
    again = BlobStore(tmp_path, 1 << 20)
    assert (again.has_file(NAME), again.is_verified(NAME)) == (True, False)
    assert again.verify(NAME)
    assert again.is_verified(NAME)
    flipped = bytearray(CONTENT)
    flipped[5] ^= 1
    (tmp_path / NAME).write_bytes(flipped)
    assert not again.verify(NAME)
    assert (again.has_file(NAME), again.is_verified(NAME)) == (False, False)
    assert not again.verify("0" * 64)


def test_least_recently_used_files_go_and_pinned_ones_stay(tmp_path: Path) -> None:
    store = BlobStore(tmp_path, 3000)
    one, two, three = (put(store, bytes([i]) * 1000) for i in range(3))
    store.touch(one)
    assert store.make_room(1000, pinned={three})
    assert store.verified == sorted([one, three])
    assert store.make_room(1500, pinned={three})
    assert store.verified == [three]
    assert not store.make_room(2500, pinned={three})
    assert not store.drop_oldest({three})
    assert store.drop_oldest(set())
    assert two not in store.verified


def test_empty_file(tmp_path: Path) -> None:
    store = BlobStore(tmp_path, 10)
    empty = hashlib.sha256(b"").hexdigest()
    assert store.finish(empty)
    assert store.is_verified(empty)


def test_failed_write_leaves_earlier_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = BlobStore(tmp_path, 1 << 20)
    store.append(NAME, CONTENT[:100])
    real = Path.open

    def full(path: Path, *more: object, **named: object) -> object:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(StoreError, match="No space left"):
        store.append(NAME, CONTENT[100:])
    monkeypatch.setattr(Path, "open", real)
    store.append(NAME, CONTENT[100:])
    assert store.finish(NAME)


def test_unusable_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError):
        BlobStore(tmp_path / "file" / "blobs", 1)


def test_other_files_in_the_folder_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "README").write_text("mine")
    store = BlobStore(tmp_path, 10)
    assert store.used_bytes == 0
    assert not store.drop_oldest(set())
    assert (tmp_path / "README").exists()


def test_keep_free_is_respected(tmp_path: Path) -> None:
    store = BlobStore(tmp_path, 1 << 62, keep_free=1 << 61)
    assert not store.make_room(1, set())
    name = put(store, CONTENT)
    assert not store.make_room(1, {name})
    assert store.is_verified(name)
    assert not store.make_room(1, set())
    assert not store.is_verified(name), "what nobody needs went first"


def test_removed_folder_is_recreated(tmp_path: Path) -> None:
    store = BlobStore(tmp_path / "blobs", 1 << 20)
    store.append(NAME, CONTENT[:100])
    shutil.rmtree(tmp_path / "blobs")
    with pytest.raises(StoreError):
        store.append(NAME, CONTENT[100:])
    assert store.partial_bytes(NAME) == 0
    store.append(NAME, CONTENT)
    assert store.finish(NAME)
