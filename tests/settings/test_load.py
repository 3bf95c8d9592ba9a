from pathlib import Path

import pytest

from relay.errors import SettingsError
from relay.settings.load import load
from relay.settings.programs import ControlPlaneSettings, NodeSettings, StandaloneSettings

SHIPPED = Path(__file__).parent.parent.parent / "config"


def refused(kind: type[NodeSettings | StandaloneSettings], text: str, folder: Path) -> list[str]:
    file = folder / "s.yaml"
    file.write_text(text)
    with pytest.raises(SettingsError) as caught:
        load(kind, file=str(file))
    return [str(p).removeprefix(f"{folder}/") for p in caught.value.problems]


def test_environment_overrides_file_and_flags_override_both(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text("node: {region: file, name: file}\nserver: {limits: {max_agents: 7}}\n")
    environment = {"OPAMP_RELAY_NODE__NAME": "environment", "OPAMP_RELAY_SERVER__LIMITS__MAX_AGENTS": "8", "HOME": "/"}
    loaded = load(
        NodeSettings, file=str(file), environment=environment, flags={"node.name": "flag", "node.data_dir": None}
    )
    settings = loaded.settings
    assert (settings.node.region, settings.node.name, settings.server.limits.max_agents) == ("file", "flag", 8)
    assert loaded.origins["node.region"] == f"{file}:1"
    assert loaded.origins["node.name"] == "command line"
    assert loaded.origins["server.limits.max_agents"] == "$OPAMP_RELAY_SERVER__LIMITS__MAX_AGENTS"


def test_all_problems_are_reported_with_file_and_line(tmp_path: Path) -> None:
    text = "node:\n  regoin: eu\n  name: 5\nserver:\n  limits:\n    header_timeout: soon\n"
    assert refused(NodeSettings, text, tmp_path) == [
        "s.yaml:3: node.name: should be a valid string",
        "s.yaml:2: node.regoin: unknown key; did you mean region?",
        "s.yaml:6: server.limits.header_timeout: 'soon' is not a duration such as 30s, 15m, 1h30m, 90d",
    ]


def test_keys_of_the_guide_are_refused_with_a_reason(tmp_path: Path) -> None:
    text = """
server: {tls: {enabled: false, client_ca_file: /certs/ca.crt}, batching: {enabled: true, max_batch_size: 100, timeout: 1s}}
database: {type: postgres}
storage: {config: {type: s3}, packages: {type: s3, bucket: opamp-packages, region: us-east-1}}
auth: {type: jwt, secret_key_file: /secrets/jwt-key}
policies: {config_update: {approval_required: true}, package_update: {approval_required: true}}
telemetry: {metrics: {endpoint: "127.0.0.1:8888"}, traces: {endpoint: "jaeger:4318"}, logs: {level: info}}
"""
    found = refused(StandaloneSettings, text, tmp_path)
    assert [line.split(": ")[1] for line in found] == [
        "database",
        "storage.config",
        "telemetry.traces",
        "auth.secret_key_file",
    ]


def test_authentication_that_is_not_supported(tmp_path: Path) -> None:
    guide = (
        "auth: {type: api_key, api_key: {storage: redis, redis: {endpoint: 'redis:6379'}, prefix: opamp_, length: 32}}"
    )
    of_redis, of_storage = refused(NodeSettings, guide, tmp_path)
    assert "auth.api_key.redis: API keys are kept by the control plane" in of_redis
    assert "auth.api_key.storage: keys are not kept in Redis" in of_storage
    assert "each node has their hashes on its own disk" in of_storage
    for url in ("http://idp.example/jwks", "ftp://localhost/jwks", "jwks", "https://"):
        (reason,) = refused(NodeSettings, f"auth: {{type: jwt, jwt: {{jwks_url: '{url}'}}}}", tmp_path)
        assert "auth.jwt.jwks_url: must be an https URL" in reason
    found = refused(NodeSettings, "auth: {type: jwt, jwt: {refresh_enabled: true}}", tmp_path)
    assert len(found) == 1
    assert "auth.jwt.refresh_enabled: agents renew their tokens by their own" in found[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("[1]", "s.yaml:1: expected a mapping of settings"), ("a: 1\n---\nb: 1", "s.yaml:3: expected one document")],
)
def test_invalid_settings_files(text: str, expected: str, tmp_path: Path) -> None:
    assert refused(NodeSettings, text, tmp_path) == [expected]


def test_missing_file_or_invalid_yaml(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="No such file"):
        load(NodeSettings, file=str(tmp_path / "none"))
    assert "not YAML" in refused(NodeSettings, "a: [", tmp_path)[0]


def test_variable_that_passes_through_a_scalar(tmp_path: Path) -> None:
    file = _file(tmp_path, "node: {name: a}")
    with pytest.raises(SettingsError, match=r"\$OPAMP_RELAY_NODE__NAME__X: node.name.x: lies below"):
        load(NodeSettings, file=file, environment={"OPAMP_RELAY_NODE__NAME__X": "1"})


def _file(folder: Path, text: str) -> str:
    file = folder / "f.yaml"
    file.write_text(text)
    return str(file)


def test_empty_file_means_the_defaults(tmp_path: Path) -> None:
    assert load(NodeSettings, file=_file(tmp_path, "# nothing\n")).settings == NodeSettings()


def test_shipped_settings_are_the_defaults() -> None:
    assert load(NodeSettings, file=str(SHIPPED / "relay.yaml")).settings == NodeSettings()
    assert load(ControlPlaneSettings, file=str(SHIPPED / "control-plane.yaml")).settings == ControlPlaneSettings()
