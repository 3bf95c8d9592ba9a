from __future__ import annotations

from pathlib import Path

import pytest

from relay.control.secrets.vault import FILE, Vault, master_of
from relay.errors import StoreError


def test_master_key_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    key = master_of(tmp_path / "keys")
    assert (len(key), master_of(tmp_path / "keys")) == (32, key)
    assert (tmp_path / "keys" / FILE).stat().st_mode & 0o777 == 0o600


def test_secret_opens_under_its_own_name_and_key_alone() -> None:
    vault = Vault(bytes(32))
    sealed = vault.seal("a", b"secret")
    assert vault.open("a", sealed) == b"secret"
    assert vault.seal("a", b"secret") != sealed
    assert b"secret" not in sealed
    flipped = sealed[:-1] + bytes([sealed[-1] ^ 1])
    for name, content, opener in (
        ("b", sealed, vault),
        ("a", flipped, vault),
        ("a", b"\x02" + sealed[1:], vault),
        ("a", b"", vault),
        ("a", b"\x01short", vault),
        ("a", sealed, Vault(b"1" * 32)),
    ):
        with pytest.raises(StoreError, match=r"cannot be decrypted: master\.key is not the one"):
            opener.open(name, content)


def test_master_key_that_is_none(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"short")
    with pytest.raises(StoreError, match="not a master key"):
        master_of(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file"):
        master_of(tmp_path / "file")


def test_master_key_is_not_replaced_where_its_secrets_are(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"master\.key is missing: restore it"):
        master_of(tmp_path / "keys", may_create=False)
    assert not (tmp_path / "keys" / FILE).exists()
