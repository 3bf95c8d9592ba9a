from __future__ import annotations

from relay.control.keys.downloads import download_key


def test_each_region_and_generation_has_its_own_key() -> None:
    assert download_key(b"1", "eu") == download_key(b"1", "eu", 0)
    keys = [download_key(b"1", "eu"), download_key(b"1", "us"), download_key(b"2", "eu"), download_key(b"1", "eu", 1)]
    assert len(set(keys)) == 4
