from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from relay.errors import SettingsError
from relay.node.credentials import Credentials
from relay.settings.programs import NodeSettings
from relay.testing.certificates import Authority
from tests.auth.builders import ED_KEY, SECRET, public_pem


def credentials(auth: dict[str, Any] | None = None, tls: dict[str, Any] | None = None) -> Credentials:
    return Credentials(NodeSettings.model_validate({"auth": auth, "server": {"tls": tls or {}}}))


def test_nothing_is_needed_without_authentication() -> None:
    for auth in (None, {"type": "none"}):
        made = credentials(auth)
        assert (made.chain, made.current.tls, made.current.grpc, made.grpc_server()) == (None,) * 4
        assert not made.refresh()


def test_files_are_loaded_again_when_they_change(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_bytes(SECRET)
    made = credentials({"type": "jwt", "secret_key_file": str(key)})
    first = made.current
    assert not made.refresh()
    key.write_bytes(SECRET + b"more")
    assert made.refresh()
    assert made.current is not first


def test_files_that_cannot_be_loaded_leave_the_earlier_ones_in_force(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_bytes(public_pem(ED_KEY))
    made = credentials({"type": "jwt", "jwt": {"public_key_file": str(key)}})
    first = made.current
    key.unlink()
    assert not made.refresh()
    assert made.problem == f"settings: auth.jwt.public_key_file: {key}: No such file or directory"
    assert made.current is first
    key.write_bytes(public_pem(ED_KEY))
    assert made.refresh()
    assert not made.problem


@pytest.mark.parametrize(
    ("field", "content", "problem"),
    [
        ("key", b"short", "auth.jwt.secret_key_file: {file}: the secret has 5 bytes, must have at least 32"),
        ("cert_file", b"no", "server.tls.cert_file: {file}, "),
        ("key_file", b"no", "server.tls.cert_file: "),
        ("client_ca_file", b"no", "server.tls.client_ca_file: {file}: "),
        ("crl_file", b"no", "server.tls.crl_file: {file}: not a revocation list in PEM"),
    ],
)
def test_files_that_are_not_what_they_should_be(tmp_path: Path, field: str, content: bytes, problem: str) -> None:
    authority = Authority(tmp_path)
    pair = authority.issue("node")
    (tmp_path / "key").write_bytes(SECRET)
    (tmp_path / "crl").write_bytes(authority.revocation_list())
    files = {
        "key": tmp_path / "key",
        "cert_file": pair.cert_file,
        "key_file": pair.key_file,
        "client_ca_file": authority.ca_file,
        "crl_file": tmp_path / "crl",
    }
    tls = {"enabled": True, **{name: str(file) for name, file in files.items() if name != "key"}}
    auth = {"type": "any", "secret_key_file": str(files["key"])}
    credentials(auth, tls)
    files[field].write_bytes(content)
    with pytest.raises(SettingsError) as caught:
        credentials(auth, tls)
    assert problem.format(file=files[field]) in str(caught.value)


def test_tls_offers_no_resumption(tmp_path: Path) -> None:
    pair = Authority(tmp_path).issue("node")
    made = credentials(None, {"enabled": True, "cert_file": str(pair.cert_file), "key_file": str(pair.key_file)})
    assert made.current.tls is not None
    assert made.current.tls.num_tickets == 0
    assert made.grpc_server() is not None
