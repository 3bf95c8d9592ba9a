from pathlib import Path

from relay.settings.programs import ControlPlaneSettings, NodeSettings, StandaloneSettings, cross_check


def test_defaults_are_safe() -> None:
    for settings in (NodeSettings(), ControlPlaneSettings(), StandaloneSettings()):
        assert cross_check(settings) == []
        assert all(endpoint.startswith("127.0.0.1:") for _, endpoint in settings.endpoints())


def test_listening_beyond_loopback_needs_explicit_settings() -> None:
    open_port = {"server": {"http": {"endpoint": "0.0.0.0:4321"}}}
    ((path, reason),) = cross_check(NodeSettings.model_validate(open_port))
    assert path == "server.http.endpoint"
    assert "auth: {type: none}" in reason
    assert cross_check(NodeSettings.model_validate({**open_port, "auth": {"type": "none"}})) == []


def test_attributes_are_labels_only_on_loopback() -> None:
    assert NodeSettings().trusted_attributes == "all"
    opened = {"server": {"http": {"endpoint": "0.0.0.0:4321"}}, "auth": {"type": "none"}}
    assert NodeSettings.model_validate(opened).trusted_attributes == ()
    named = {**opened, "identity": {"labels_from_attributes": ["tier"]}}
    assert NodeSettings.model_validate(named).trusted_attributes == ("tier",)


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


def test_standalone_is_both_programs() -> None:
    settings = StandaloneSettings.model_validate(
        {"data_dir": "x", "server": {"link": {"endpoint": "127.0.0.1:9"}, "limits": {"max_agents": 5}}}
    )
    node, control_plane = settings.for_node(), settings.for_control_plane()
    assert node.control_plane.endpoint == control_plane.server.link.endpoint == "127.0.0.1:9"
    assert node.server.limits.max_agents == 5
    assert (node.node.data_dir, control_plane.data_dir) == ("x/node", "x/control-plane")
