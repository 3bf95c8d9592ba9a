from __future__ import annotations

from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from pydantic import ValidationError

from relay.policy.packages import PackageFile, PublishedPackage
from relay.policy.signatures import PackageSigningKey, private_key, problem_with, public_key, statement

KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))
KEYS = {"release": KEY.public_key()}
PEM = KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def signed(version: str = "1", *, expires_ms: int = 0, **more: Any) -> tuple[PublishedPackage, PackageFile]:
    content = statement("agent", "1", "1" * 64, 5, expires_ms)
    values = {"signature": KEY.sign(content).hex(), "key": "release", "expires_ms": expires_ms, **more}
    file = PackageFile(sha256="1" * 64, size=5, **values)
    return PublishedPackage(name="agent", version=version, files=[file]), file


def test_valid_signature() -> None:
    assert problem_with(*signed(), KEYS, 0) == ""
    assert problem_with(*signed(expires_ms=10), KEYS, 9) == ""


@pytest.mark.parametrize(
    ("package", "problem"),
    [
        (signed(signature=""), "agent@1 is not signed"),
        (signed(key="other"), "agent@1 is signed with other, but no PackageSigningKey has that name"),
        (signed(key=""), "agent@1 is signed with an unnamed key, but no PackageSigningKey has that name"),
        (signed(expires_ms=10), "the signature of agent@1 has expired"),
        (signed("2"), "the signature of agent@2 is wrong"),
        (signed(signature="00" * 64), "the signature of agent@1 is wrong"),
        (signed(signature="00"), "the signature of agent@1 is not an Ed25519 signature"),
    ],
)
def test_signature_problems(package: tuple[PublishedPackage, PackageFile], problem: str) -> None:
    assert problem_with(*package, KEYS, 10) == problem


def test_keys_are_validated_on_apply() -> None:
    document = {
        "apiVersion": "opamp.io/v1",
        "kind": "PackageSigningKey",
        "metadata": {"name": "release"},
        "spec": {"public_key": PEM},
    }
    assert PackageSigningKey.model_validate(document).key == "release"
    with pytest.raises(ValidationError, match="not a public key in PEM"):
        PackageSigningKey.model_validate({**document, "spec": {"public_key": "x"}})


def test_keys_of_another_type_are_refused() -> None:
    other = ec.generate_private_key(ec.SECP256R1())
    public = other.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    private = other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    with pytest.raises(ValueError, match="not an Ed25519 key"):
        public_key(public)
    with pytest.raises(ValueError, match="not an Ed25519 key"):
        private_key(private)
    with pytest.raises(ValueError, match="not a private key in PEM"):
        private_key(b"x")
    assert private_key(KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
