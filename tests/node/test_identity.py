from __future__ import annotations

from pathlib import Path

import pytest
from cryptography import x509

from relay.auth.key_sets import KeyChain, sign
from relay.control.trust.certificates import Issuer, public_key_of
from relay.errors import StoreError
from relay.node.identity import Identity, IdentityFolder, Trusted, read_identity
from tests.auth.test_key_sets import FIRST, ROOT, ROOT_ID
from tests.control.trust.test_certificates import AUTHORITY, NOW

TRUSTED = Trusted(KeyChain.of([sign(FIRST, ROOT)]), ROOT_ID, "cp:1", "cp:2")
ISSUER = Issuer(AUTHORITY, "example")


def joined(folder: Path) -> Identity:
    files = IdentityFolder(folder)
    public, _ = public_key_of(files.request())
    return files.store(ISSUER.node("eu", "one", public, NOW, 3600), TRUSTED)


def test_identity_is_kept_for_its_owner_alone(tmp_path: Path) -> None:
    files = IdentityFolder(tmp_path / "identity")
    assert files.load() is None
    identity = joined(files.folder)
    assert files.load() == identity
    assert (identity.node.key, files.trusted()) == ("eu/one", TRUSTED)
    assert identity.authorities == FIRST.authorities[0].encode()
    assert identity.channel() is not None
    assert files.folder.stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o777 for file in files.folder.iterdir()} == {0o600}


def test_repeated_requests_have_the_same_key(tmp_path: Path) -> None:
    files = IdentityFolder(tmp_path)
    assert public_key_of(files.request())[1] == public_key_of(files.request())[1]


def test_another_identity_takes_over_whole(tmp_path: Path) -> None:
    old, fresh = joined(tmp_path / "a"), joined(tmp_path / "b")
    taken = IdentityFolder(tmp_path / "a").take_over(IdentityFolder(tmp_path / "b"))
    assert taken == fresh == IdentityFolder(tmp_path / "a").load()
    assert taken.node.key_digest != old.node.key_digest
    assert not (tmp_path / "b").exists()
    with pytest.raises(StoreError):
        IdentityFolder(tmp_path / "a").take_over(IdentityFolder(tmp_path / "b"))


def test_certificate_that_is_gone(tmp_path: Path) -> None:
    joined(tmp_path)
    assert not IdentityFolder(tmp_path).is_broken
    (tmp_path / "node.crt").unlink()
    assert IdentityFolder(tmp_path).is_broken


def test_file_of_cas_is_for_people(tmp_path: Path) -> None:
    before = joined(tmp_path)
    (tmp_path / "ca.crt").write_bytes(b"")
    assert IdentityFolder(tmp_path).load() == before


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("node.crt", b"x", "cannot be used"),
        ("node.key", b"x", "cannot be used"),
        ("node.key", None, "No such file"),
        ("node.crt", AUTHORITY.certificate, "names no node"),
    ],
)
def test_damaged_identity_is_named(tmp_path: Path, name: str, content: bytes | None, reason: str) -> None:
    joined(tmp_path)
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(StoreError, match=reason) as caught:
        IdentityFolder(tmp_path).load()
    assert name in str(caught.value)


def test_key_of_another_certificate(tmp_path: Path) -> None:
    joined(tmp_path / "a")
    joined(tmp_path / "b")
    with pytest.raises(StoreError, match="not the key of"):
        read_identity(tmp_path / "a/node.crt", tmp_path / "b/node.key", AUTHORITY.certificate)


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[" * 100_000, b'{"key_sets": [], "root": "a", "join": "b", "link": "c"}', None]
)
def test_damaged_trust_is_named(tmp_path: Path, content: bytes | None) -> None:
    joined(tmp_path)
    file = tmp_path / "key_sets.json"
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(StoreError, match=r"key_sets\.json"):
        IdentityFolder(tmp_path).trusted()


def test_damaged_key_is_named(tmp_path: Path) -> None:
    (tmp_path / "node.key").write_bytes(b"x")
    with pytest.raises(StoreError, match=r"node\.key: not a private key"):
        IdentityFolder(tmp_path).request()
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file"):
        IdentityFolder(tmp_path / "file").request()


def test_certificate_is_a_leaf(tmp_path: Path) -> None:
    certificate = x509.load_pem_x509_certificate(joined(tmp_path).certificate)
    assert certificate.subject.rfc4514_string() == "CN=node"
