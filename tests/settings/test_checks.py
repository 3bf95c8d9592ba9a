from pathlib import Path
from typing import Any

import pytest

from relay.settings.checks import cross_check
from relay.settings.programs import ControlPlaneSettings, NodeSettings, StandaloneSettings


def test_defaults_are_safe() -> None:
    for settings in (NodeSettings(), ControlPlaneSettings(), StandaloneSettings()):
        assert cross_check(settings) == []
        assert all(endpoint.startswith("127.0.0.1:") for _, endpoint in settings.endpoints())


def test_listening_beyond_loopback_needs_explicit_settings() -> None:
    open_port = {"server": {"http": {"endpoint": "0.0.0.0:4321"}}}
    ((path, reason),) = cross_check(NodeSettings.model_validate(open_port))
    assert path == "server.http.endpoint"
    assert "{type: none}" in reason
    assert cross_check(NodeSettings.model_validate({**open_port, "auth": {"type": "none"}})) == []


def test_tls_needs_its_files(tmp_path: Path) -> None:
    tls = {"enabled": True, "cert_file": str(tmp_path / "none"), "key_file": ""}
    found = dict(cross_check(NodeSettings.model_validate({"server": {"tls": tls}})))
    assert "no such file" in found["server.tls.cert_file"]
    assert "is required" in found["server.tls.key_file"]


def test_two_listeners_cannot_share_a_port() -> None:
    twice = {"server": {"http": {"endpoint": "127.0.0.1:4320"}}}
    assert cross_check(NodeSettings.model_validate(twice)) == [
        ("server.http.endpoint", "127.0.0.1:4320 is already used by server.websocket.endpoint")
    ]


def node(auth: dict[str, Any], tls: dict[str, Any] | None = None, **server: Any) -> NodeSettings:
    return NodeSettings.model_validate({"auth": auth, "server": {"tls": tls or {}, **server}})


def test_authenticated_ports_may_be_open(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.touch()
    everywhere = {"http": {"endpoint": "0.0.0.0:4321"}}
    tls = {"enabled": True, "cert_file": str(key), "key_file": str(key)}
    for form in ({"secret_key_file": str(key)}, {"jwt": {"public_key_file": str(key)}}):
        auth = {"type": "jwt", **form}
        assert cross_check(node(auth)) == []
        assert cross_check(node(auth, tls, **everywhere)) == []
        assert cross_check(node(auth, {"terminated": True}, **everywhere)) == []
        assert cross_check(node(auth, **everywhere)) == [
            (
                "auth.type",
                "credentials would be in the clear; set server.tls.enabled, or server.tls.terminated if a proxy ends TLS",
            )
        ]


def test_authentication_of_agents_does_not_open_other_ports(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.touch()
    settings = {
        "auth": {"type": "jwt", "secret_key_file": str(key)},
        "server": {"link": {"endpoint": "0.0.0.0:4330"}, "api": {"endpoint": "0.0.0.0:4340"}},
        "telemetry": {"metrics": {"endpoint": "0.0.0.0:8888"}},
    }
    found = cross_check(StandaloneSettings.model_validate(settings))
    assert [path for path, _ in found] == ["server.link.endpoint", "server.api.endpoint"]
    assert cross_check(StandaloneSettings.model_validate({**settings, "auth": {"type": "none"}})) == []


def test_client_certificates(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    tls = {"enabled": True, "cert_file": str(file), "key_file": str(file), "client_ca_file": str(file)}
    for kind in ("mtls", "any"):
        assert cross_check(node({"type": kind}, tls)) == []
    assert cross_check(node({"type": "none"}, tls)) == []
    assert cross_check(node({"type": "mtls"}, {**tls, "client_auth": "optional", "crl_file": str(file)})) == []


@pytest.mark.parametrize(
    ("auth", "tls", "path", "reason"),
    [
        ({"type": "jwt"}, {}, "auth.jwt", "is required with type jwt"),
        ({"type": "jwt", "jwt": {}}, {}, "auth.jwt", "needs secret_key_file, public_key_file or jwks_url"),
        ({"type": "jwt", "secret_key_file": "none"}, {}, "auth.secret_key_file", "none: no such file"),
        ({"type": "jwt", "jwt": {"secret_key_file": "none"}}, {}, "auth.jwt.secret_key_file", "none: no such file"),
        ({"type": "jwt", "jwt": {"public_key_file": "none"}}, {}, "auth.jwt.public_key_file", "none: no such file"),
        (
            {"type": "jwt", "secret_key_file": "a", "jwt": {"secret_key_file": "b"}},
            {},
            "auth.secret_key_file",
            "stands for auth.jwt.secret_key_file; set only one of them",
        ),
        (
            {"type": "any", "jwt": {"secret_key_file": "a", "public_key_file": "b"}},
            {},
            "auth.jwt.secret_key_file",
            "auth.jwt.secret_key_file and auth.jwt.public_key_file exclude each other; set only one of them",
        ),
        (
            {"type": "jwt", "jwt": {"secret_key_file": "a", "jwks_url": "https://idp/jwks"}},
            {},
            "auth.jwt.secret_key_file",
            "auth.jwt.secret_key_file and auth.jwt.jwks_url exclude each other; set only one of them",
        ),
        ({"type": "none", "deny": ["10.0.0.0/8"]}, {}, "auth.deny", "has no effect with type none"),
        ({"type": "mtls"}, {}, "auth.type", "mtls needs server.tls.enabled and server.tls.client_ca_file"),
        ({"type": "none"}, {"client_auth": "optional"}, "server.tls.client_auth", "optional needs client_ca_file"),
        ({"type": "none"}, {"crl_file": "a"}, "server.tls.crl_file", "needs client_ca_file"),
    ],
)
def test_credentials_that_could_not_be_verified(
    auth: dict[str, Any], tls: dict[str, Any], path: str, reason: str
) -> None:
    assert cross_check(node(auth, tls)) == [(path, reason)]


@pytest.mark.parametrize(
    ("content", "path", "reason"),
    [
        ({"server": {"link": {"endpoint": "0.0.0.0:1"}}}, "server.names", "is required beyond loopback"),
        ({"server": {"link": {"endpoint": "0.0.0.0:1"}, "names": ["cp"]}}, "", ""),
        ({"server": {"link": {"endpoint": "0.0.0.0:1"}}, "auth": {"type": "none"}}, "", ""),
        (
            {"server": {"link": {"endpoint": "0.0.0.0:1", "tls": {"enabled": False}}}},
            "server.link.endpoint",
            "0.0.0.0:1 accepts other machines without authentication; leave server.link.tls.enabled on",
        ),
        (
            {"server": {"link": {"endpoint": "127.0.0.1:1", "tls": {"client_ca_file": "a"}}}},
            "server.link.tls.client_ca_file",
            "has no effect without server.link.tls.enabled",
        ),
        (
            {"server": {"link": {"endpoint": "127.0.0.1:1", "tls": {"enabled": True, "cert_file": "a"}}}},
            "server.link.tls.cert_file",
            "a: no such file",
        ),
        (
            {"server": {"api": {"endpoint": "0.0.0.0:1"}}},
            "server.api.endpoint",
            "0.0.0.0:1 accepts other machines without authentication; set `admin: {auth: {type: token}}`",
        ),
        ({"server": {"api": {"endpoint": "0.0.0.0:1"}}, "admin": {"auth": {"type": "none"}}}, "", ""),
        (
            {"server": {"api": {"endpoint": "0.0.0.0:1"}}, "admin": {"auth": {"type": "token"}}},
            "server.api.tls.enabled",
            "tokens would be sent in the clear",
        ),
        (
            {
                "server": {"api": {"endpoint": "0.0.0.0:1", "tls": {"terminated": True}}},
                "admin": {"auth": {"type": "token"}},
            },
            "",
            "",
        ),
        (
            {"server": {"api": {"endpoint": "127.0.0.1:1", "tls": {"enabled": True, "cert_file": "a"}}}},
            "server.api.tls.cert_file",
            "a: no such file",
        ),
    ],
)
def test_control_planes_ports(content: dict[str, Any], path: str, reason: str) -> None:
    problems = cross_check(ControlPlaneSettings.model_validate(content))
    if not path:
        assert problems == []
        return
    found_path, found_reason = problems[0]
    assert (found_path, found_reason.startswith(reason)) == (path, True), problems


def test_files_of_a_nodes_identity_go_together() -> None:
    for given, path, reason in (
        ({"ca_file": "a"}, "control_plane.cert_file", "goes together with ca_file"),
        (
            dict.fromkeys(("ca_file", "cert_file", "key_file"), "/nowhere"),
            "control_plane.ca_file",
            "/nowhere: no such file",
        ),
    ):
        problems = cross_check(NodeSettings.model_validate({"control_plane": given}))
        assert problems[0] == (path, reason)


@pytest.mark.parametrize("name", ["ü.example", "a b", "", "-", "x:4331", "http://x", "a" * 64, 7])
def test_names_that_go_into_no_certificate(name: object) -> None:
    with pytest.raises(ValueError, match="expected a host name or an IP address"):
        ControlPlaneSettings.model_validate({"server": {"names": [name]}})


def test_names() -> None:
    made = ControlPlaneSettings.model_validate({"server": {"names": ["cp.example", "10.0.0.1", "0::1"]}})
    assert made.names == ("cp.example", "10.0.0.1", "::1")


@pytest.mark.parametrize(
    ("auth", "path", "reason"),
    [
        ({"type": "oidc"}, "admin.auth.oidc", "is required with type: oidc"),
        ({"type": "token", "oidc": {"issuer": "https://a", "client_id": "b"}}, "admin.auth.oidc", "has no effect"),
        (
            {"type": "oidc", "oidc": {"issuer": "https://a", "client_id": "b", "client_secret_file": "/none"}},
            "admin.auth.oidc.client_secret_file",
            "/none: No such file",
        ),
    ],
)
def test_openid_providers(auth: dict[str, Any], path: str, reason: str) -> None:
    settings = ControlPlaneSettings.model_validate({"admin": {"auth": auth}})
    assert [(p, r.startswith(reason)) for p, r in cross_check(settings)] == [(path, True)]


def test_secret_that_is_empty(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"\n")
    oidc = {"issuer": "https://a", "client_id": "b", "client_secret_file": str(tmp_path / "secret")}
    settings = ControlPlaneSettings.model_validate({"admin": {"auth": {"type": "oidc", "oidc": oidc}}})
    assert [r.endswith("is empty") for _, r in cross_check(settings)] == [True]
    (tmp_path / "secret").write_bytes(b"\xff")
    assert [r.endswith("not text") for _, r in cross_check(settings)] == [True]


def test_root_file_goes_with_ones_own_certificate() -> None:
    settings = NodeSettings.model_validate({"control_plane": {"root_file": "root.pub"}})
    assert [path for path, _ in cross_check(settings)] == ["control_plane.root_file"]
