from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from relay.cli.warnings import warnings_of
from relay.settings.programs import ControlPlaneSettings, NodeSettings, StandaloneSettings
from relay.testing.certificates import Authority, _builder


def of_node(**content: Any) -> dict[str, str]:
    return dict(warnings_of(NodeSettings.model_validate(content)))


def test_defaults_need_no_warning(tmp_path: Path) -> None:
    assert of_node() == {}
    assert warnings_of(ControlPlaneSettings(data_dir=str(tmp_path))) == []
    assert warnings_of(StandaloneSettings(data_dir=str(tmp_path))) == []


def test_open_ports() -> None:
    found = of_node(server={"http": {"endpoint": "0.0.0.0:1"}}, auth={"type": "none"})
    assert found == {"auth.type": "none: whoever reaches server.http.endpoint can pose as any agent"}
    plane = ControlPlaneSettings.model_validate(
        {
            "server": {"link": {"endpoint": "0.0.0.0:1"}, "api": {"endpoint": "0.0.0.0:2"}},
            "auth": {"type": "none"},
            "keys": {"dir": "/nowhere"},
        }
    )
    assert [path for path, _ in warnings_of(plane)] == ["server.link.tls.enabled", "admin.auth.type"]


def test_link_in_the_clear(tmp_path: Path) -> None:
    address = {"endpoint": "cp.example:4330"}
    assert "this node believes whoever answers" in of_node(control_plane=address)["control_plane.endpoint"]
    assert of_node(control_plane={**address, "join_token_file": "token"}) == {}


def test_tokens(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_bytes(b"k" * 32)
    key.chmod(0o644)
    auth = {"type": "jwt", "secret_key_file": str(key)}
    pairs = warnings_of(NodeSettings.model_validate({"auth": auth, "identity": {"labels_from_attributes": "all"}}))
    assert [path for path, _ in pairs] == [
        "identity.labels_from_attributes",
        "auth.jwt.secret_key_file",
        "auth.jwt.secret_key_file",
        "auth.jwt.issuer",
        "auth.jwt.audience",
    ]
    assert "others than its owner can read it" in pairs[2][1]
    assert "k" * 32 not in str(pairs)


@pytest.mark.parametrize(("days", "is_soon"), [(1, True), (100, False)])
def test_certificates(tmp_path: Path, days: int, is_soon: bool) -> None:
    authority = Authority(tmp_path)
    now = time.time()
    pair = authority.issue("node", valid=(now - 60, now + days * 86_400))
    pair.key_file.chmod(0o600)
    tls = {"enabled": True, "cert_file": str(pair.cert_file), "key_file": str(pair.key_file), "min_version": "1.2"}
    found = of_node(server={"tls": tls})
    assert "server.tls.min_version" in found
    assert ("server.tls.cert_file" in found) is is_soon


def test_certificate_without_names(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([])
    bare = _builder(name, name, key.public_key(), (time.time(), time.time() + 99 * 86_400)).sign(key, hashes.SHA256())
    file = tmp_path / "bare.crt"
    file.write_bytes(bare.public_bytes(Encoding.PEM))
    tls = {"enabled": True, "cert_file": str(file), "key_file": str(file)}
    assert "Go clients refuse it" in of_node(server={"tls": tls})["server.tls.cert_file"]
    file.write_bytes(b"x")
    file.chmod(0o600)
    assert of_node(server={"tls": tls}) == {}


def test_root_key_that_is_still_there(tmp_path: Path) -> None:
    (tmp_path / "root.pem").write_text("")
    plane = ControlPlaneSettings.model_validate(
        {"keys": {"dir": str(tmp_path)}, "server": {"link": {"tls": {"enabled": True}}}}
    )
    assert warnings_of(ControlPlaneSettings.model_validate({"keys": {"dir": str(tmp_path)}})) == []
    assert warnings_of(plane) == [
        ("keys.dir", f"{tmp_path}/root.pem is still there: move it away, the control plane never reads it")
    ]


def test_device_flow_is_named(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s")
    (tmp_path / "secret").chmod(0o644)
    oidc = {
        "issuer": "https://idp.example",
        "client_id": "opamp",
        "client_secret_file": str(tmp_path / "secret"),
        "device_flow": True,
    }
    settings = ControlPlaneSettings.model_validate({"admin": {"auth": {"type": "oidc", "oidc": oidc}}})
    assert {path for path, _ in warnings_of(settings)} == {
        "admin.auth.oidc.client_secret_file",
        "admin.auth.oidc.device_flow",
    }
