import uuid

import pytest

from relay.ids import digest64, format_uid, is_secure_url, new_instance_uid, parse_uid, sha256


def test_new_uid_is_a_uuid_v7_that_sorts_by_time() -> None:
    early, late = (new_instance_uid(ms, b"\xff" * 10) for ms in (1_000, 2_000))
    assert uuid.UUID(bytes=early).version == 7
    assert uuid.UUID(bytes=early).variant == uuid.RFC_4122
    assert early < late
    with pytest.raises(ValueError):
        new_instance_uid(1, b"")


def test_uid_text_round_trip() -> None:
    uid = bytes(range(16))
    assert parse_uid(format_uid(uid)) == uid
    assert parse_uid("agent-001") is None
    with pytest.raises(ValueError):
        format_uid(b"short")


def test_digests_are_stable() -> None:
    assert digest64(b"a") == digest64(b"a") != digest64(b"b")
    assert digest64(b"") < 1 << 64
    assert len(sha256(b"")) == 32


def test_urls_that_nobody_on_the_way_can_read() -> None:
    for good in ("https://idp", "http://localhost:1", "http://127.0.0.1", "http://[::1]:5"):
        assert is_secure_url(good)
    for bad in ("http://idp", "http://[", "ftp://localhost", "https://", ""):
        assert not is_secure_url(bad), bad
