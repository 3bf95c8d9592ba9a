from relay.settings.programs import NodeSettings, StandaloneSettings


def test_attributes_are_labels_only_on_loopback() -> None:
    assert NodeSettings().trusted_attributes == "all"
    opened = {"server": {"http": {"endpoint": "0.0.0.0:4321"}}, "auth": {"type": "none"}}
    assert NodeSettings.model_validate(opened).trusted_attributes == ()
    assert NodeSettings.model_validate({"auth": {"type": "mtls"}}).trusted_attributes == (), "credentials bring labels"
    named = {**opened, "identity": {"labels_from_attributes": ["tier"]}}
    assert NodeSettings.model_validate(named).trusted_attributes == ("tier",)


def test_standalone_is_both_programs() -> None:
    settings = StandaloneSettings.model_validate(
        {"data_dir": "x", "server": {"link": {"endpoint": "127.0.0.1:9"}, "limits": {"max_agents": 5}}}
    )
    node, control_plane = settings.for_node(), settings.for_control_plane()
    assert node.control_plane.endpoint == control_plane.server.link.endpoint == "127.0.0.1:9"
    assert node.server.limits.max_agents == 5
    assert (node.node.data_dir, control_plane.data_dir) == ("x/node", "x/control-plane")
