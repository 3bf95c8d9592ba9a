from __future__ import annotations

from pathlib import Path

import pytest

from relay.control.secrets.vault import FILE, Vault
from relay.errors import StoreError


def vault_of(folder: Path, key: bytes) -> Vault:
    folder.mkdir(exist_ok=True)
    (folder / FILE).write_bytes(key)
    return Vault(folder)


def test_master_key_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    sealed = Vault(folder).seal("a", b"secret")
    assert Vault(folder).open("a", sealed) == b"secret"
    assert (folder / FILE).stat().st_mode & 0o777 == 0o600
    assert len((folder / FILE).read_bytes()) == 32


def test_secret_opens_under_its_own_name_and_key_alone(tmp_path: Path) -> None:
    vault = vault_of(tmp_path / "a", bytes(32))
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
        ("a", sealed, vault_of(tmp_path / "b", b"1" * 32)),
    ):
        with pytest.raises(StoreError, match=r"cannot be decrypted: master\.key is not the one"):
            opener.open(name, content)


def test_master_key_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="not a master key"):
        vault_of(tmp_path, b"short")
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file"):
        Vault(tmp_path / "file")


def test_master_key_is_not_replaced_where_its_secrets_are(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"master\.key is missing: restore it"):
        Vault(tmp_path / "keys", may_create=False)
    assert not (tmp_path / "keys" / FILE).exists()


def test_master_key_is_replaced(tmp_path: Path) -> None:
    vault = vault_of(tmp_path, bytes(32))
    with vault.replacing() as seal:
        sealed = seal("a", vault.open("a", vault.seal("a", b"secret")))
    assert vault.open("a", sealed) == b"secret"
    assert (tmp_path / FILE).read_bytes() != bytes(32)
    assert [file.name for file in tmp_path.iterdir()] == [FILE]
    assert Vault(tmp_path).open("a", sealed) == b"secret"


def test_replacement_that_fails_changes_nothing(tmp_path: Path) -> None:
    vault = vault_of(tmp_path, bytes(32))
    sealed = vault.seal("a", b"secret")
    with pytest.raises(RuntimeError), vault.replacing():
        raise RuntimeError
    assert vault.open("a", vault.seal("a", b"again")) == b"again"
    with pytest.raises(StoreError, match="is left from a replacement that failed"), vault.replacing():
        pass
    restarted = Vault(tmp_path)
    restarted.settle([("a", sealed)])
    assert restarted.open("a", sealed) == b"secret"
    assert (tmp_path / FILE).read_bytes() == bytes(32)
    assert [file.name for file in tmp_path.iterdir()] == [FILE]


def test_attack_damaged_secret_does_not_bring_back_a_left_over(tmp_path: Path) -> None:
    vault = vault_of(tmp_path, bytes(32))
    sealed = vault.seal("a", b"secret")
    (tmp_path / "master.key.new").write_bytes(b"9" * 32)
    restarted = Vault(tmp_path)
    restarted.settle([("a", sealed), ("b", b"damaged")])
    assert Vault(tmp_path).open("a", sealed) == b"secret"


def test_new_key_takes_the_place_of_one_that_was_put_aside(tmp_path: Path) -> None:
    (tmp_path / "master.key.new").write_bytes(b"9" * 32)
    sealed = Vault(tmp_path).seal("a", b"secret")
    assert [file.name for file in tmp_path.iterdir()] == [FILE]
    assert Vault(tmp_path).open("a", sealed) == b"secret"


def test_new_key_that_cannot_be_written(tmp_path: Path) -> None:
    vault = vault_of(tmp_path, bytes(32))
    (tmp_path / ".master.key.new.new").mkdir()
    with pytest.raises(StoreError, match=r"master\.key\.new"), vault.replacing():
        pass


def test_crash_between_database_and_file_is_finished_at_the_start(tmp_path: Path) -> None:
    vault = vault_of(tmp_path, bytes(32))
    replacing = vault.replacing()
    sealed = replacing.__enter__()("a", b"secret")  # and the process dies after the commit
    restarted = Vault(tmp_path)
    assert restarted.open("a", sealed) == b"secret", "both keys are tried until it is settled"
    restarted.settle([("a", sealed)])
    assert [file.name for file in tmp_path.iterdir()] == [FILE]
    assert Vault(tmp_path).open("a", sealed) == b"secret"


def test_new_key_that_cannot_take_its_place_is_named(tmp_path: Path) -> None:
    vault = vault_of(tmp_path, bytes(32))
    replacing = vault.replacing()
    sealed = replacing.__enter__()("a", b"secret")
    (tmp_path / FILE).unlink()
    (tmp_path / FILE).mkdir()
    with pytest.raises(StoreError, match=r"the new key is in .*master\.key\.new"):
        replacing.__exit__(None, None, None)
    assert vault.open("a", sealed) == b"secret"
