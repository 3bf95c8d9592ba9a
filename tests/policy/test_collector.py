from typing import Any

import pytest

from relay.documents import parse
from relay.policy.collector import check, components, is_collector_config

GOOD = """
receivers:
  otlp: {protocols: {grpc: {endpoint: "0.0.0.0:4317"}, http: {endpoint: "[::1]:4318"}}}
  hostmetrics: {collection_interval: 1m30s, scrapers: {cpu: {}}}
processors:
  batch: {timeout: 200ms}
  memory_limiter: {check_interval: "${env:INTERVAL}", limit_mib: 400}
exporters:
  otlp/backend: {endpoint: "https://collector.example:4317/v1", timeout: "{{.timeout}}"}
  debug:
connectors:
  spanmetrics: {}
extensions:
  health_check: {endpoint: "localhost:13133"}
service:
  extensions: [health_check]
  pipelines:
    traces/in: {receivers: [otlp], processors: [memory_limiter, batch], exporters: [otlp/backend, spanmetrics]}
    metrics: {receivers: [spanmetrics, hostmetrics], exporters: [debug]}
  telemetry: {metrics: {level: none}}
"""


def read(text: str) -> dict[str, Any]:
    value = parse(text, "f")[0].value
    assert isinstance(value, dict)
    return value


def test_valid_config() -> None:
    assert is_collector_config(read(GOOD))
    assert check(read(GOOD)) == []
    assert components(read(GOOD))["exporters"] == {"otlp", "debug"}
    assert not is_collector_config(read("rate: 5"))


@pytest.mark.parametrize(
    ("old", "new", "path", "reason"),
    [
        ("receivers: [otlp]", "receivers: [oltp]", "service.pipelines.traces/in.receivers.0", "oltp is not defined in"),
        ("processors: [memory", "processors: [otlp, memory", "service.pipelines.traces/in.processors.0", "not defined"),
        ("exporters: [debug]", "exporters: []", "service.pipelines.metrics.exporters", "must name at least one"),
        ("receivers: [otlp], ", "", "service.pipelines.traces/in.receivers", "must name at least one"),
        ("exporters: [debug]", "exporters: debug", "service.pipelines.metrics.exporters", "not a list"),
        ("traces/in", "spans", "service.pipelines.spans", "is not one of traces, metrics"),
        ("[health_check]", "[zpages]", "service.extensions.0", "zpages is not defined in extensions"),
        ("timeout: 200ms", "timeout: 200 ms", "processors.batch.timeout", "not a duration"),
        ("interval: 1m30s", "interval: soon", "receivers.hostmetrics.collection_interval", "not a duration"),
        ("0.0.0.0:4317", "0.0.0.0:99999", "receivers.otlp.protocols.grpc.endpoint", "not HOST:PORT"),
        ("localhost:13133", "local host", "extensions.health_check.endpoint", "not HOST:PORT"),
        ("  debug:\n", "  debug:\n  1bad:\n", "exporters.1bad", "not a component id"),
        ("receivers: [spanmetrics, hostm", "receivers: [hostm", "connectors.spanmetrics", "must also be a receiver"),
        ("backend, spanmetrics]", "backend]", "connectors.spanmetrics", "must also be an exporter"),
        ("connectors:\n  spanmetrics: {}", "connectors: [a]", "connectors", "not a mapping"),
        ("extensions:\n  health", "exotics: {}\nextensions:\n  health", "exotics", "unknown section"),
        ("exporters: [debug]}", "exporters: [debug], x: 1}", "service.pipelines.metrics.x", "unknown key"),
    ],
)
def test_errors(old: str, new: str, path: str, reason: str) -> None:
    assert old in GOOD
    found = [f for f in check(read(GOOD.replace(old, new))) if f.is_error]
    assert any(f.path == path and reason in f.reason for f in found), found


def test_unused_components_are_warnings() -> None:
    (finding,) = check(read(GOOD.replace("  debug:\n", "  debug:\n  file: {}\n")))
    assert (finding.path, finding.is_error) == ("exporters.file", False)


@pytest.mark.parametrize(
    "text", ["receivers: {}", "service: 1", "service: {pipelines: {}}", "service: {pipelines: {traces: 1}}"]
)
def test_incomplete_configs_are_errors(text: str) -> None:
    assert any(f.is_error for f in check(read(text)))


def test_placeholders_in_lists_are_not_judged() -> None:
    text = GOOD.replace("receivers: [otlp]", 'receivers: ["{{.receiver}}"]').replace(
        "  debug:", '  debug: {endpoints: ["a.example:1", "nonsense:99999999"]}'
    )
    assert [(f.path, f.is_error) for f in check(read(text))] == [("receivers.otlp", False)], "it may be the one"


@pytest.mark.parametrize("role", ["receivers", "exporters"])
def test_component_lists_must_be_lists(role: str) -> None:
    found = check({**read(GOOD), "service": {"pipelines": {"metrics": {role: "otlp"}}}})
    assert any(f.path == f"service.pipelines.metrics.{role}" and "not a list" in f.reason for f in found)


def test_pipeline_with_a_placeholder() -> None:
    config = read(GOOD)
    config["service"]["pipelines"]["logs"] = "{{.pipeline}}"
    assert check(config) == []
    config["service"]["pipelines"]["logs"] = 5
    assert any(f.reason == "not a mapping" for f in check(config))
