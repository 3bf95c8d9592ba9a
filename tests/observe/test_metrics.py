from relay.observe.metrics import ControlPlaneMetrics, NodeMetrics


def test_metrics_of_the_guide_exist() -> None:
    metrics = NodeMetrics("eu")
    metrics.heartbeats, metrics.messages_received = 5, 2
    metrics.config_updates["success"] += 1
    metrics.refused["connections"] += 3
    metrics.sources["opamp_server_connected_agents"] = ("Agents connected", lambda: 7)
    text = metrics.expose().decode()
    for line in (
        'opamp_server_messages_received_total{type="AgentToServer"} 7.0',
        'opamp_server_messages_sent_total{type="ServerToAgent"} 5.0',
        'opamp_server_connected_agents{region="eu"} 7.0',
        'opamp_server_config_updates_total{status="success"} 1.0',
        'opamp_server_config_updates_total{status="failure"} 0.0',
        "opamp_server_websocket_connections_total 0.0",
        "opamp_server_health_check_failures_total 0.0",
        'opamp_relay_refused_total{reason="connections"} 3.0',
    ):
        assert line in text
    assert "opamp_server_config_update_duration_seconds_bucket" in text


def test_control_plane_counts_by_region() -> None:
    metrics = ControlPlaneMetrics()
    metrics.regions = lambda: {"eu": 3, "us": 4}
    metrics.sources["opamp_control_plane_agents"] = ("Agents known", lambda: 9)
    text = metrics.expose().decode()
    assert 'opamp_server_connected_agents{region="us"} 4.0' in text
    assert "opamp_control_plane_agents 9.0" in text
    assert 'opamp_control_plane_applies_total{outcome="done"} 0.0' in text
