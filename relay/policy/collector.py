"""Check the structure of a Collector's configuration before any agent gets it.

The checks hold for every distribution: references between sections, and the form of names, durations and endpoints. The
settings of a component are left to the component. Values with placeholders are not checked.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

SECTIONS = ("receivers", "processors", "exporters", "connectors", "extensions")
SIGNALS = ("traces", "metrics", "logs", "profiles")
_ID = re.compile(r"^[A-Za-z][0-9A-Za-z_]{0,62}(/[^/\s]{1,1024})?$")
_DURATION = re.compile(r"^[+-]?(\d+(\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)((\d+(\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h))*$|^0$")
_DURATION_KEYS = re.compile(r"(^|_)(timeout|interval)$")
_ENDPOINT = re.compile(r"^([a-z][a-z0-9+.-]*://)?(\[[0-9A-Fa-f:.%]+\]|[^\s:/\[\]]*)(:(\d{1,5}|[a-z-]+))?(/\S*)?$")
_PLACEHOLDER = re.compile(r"\{\{|\$\{|\$[A-Za-z_]")
"""A placeholder of ours, or a variable that the Collector expands."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One problem of a configuration."""

    path: str
    """Dotted path in the configuration."""
    reason: str
    is_error: bool = True
    """False for what a Collector accepts but is likely a mistake."""


def is_collector_config(config: Mapping[str, Any]) -> bool:
    """Whether this looks like a Collector's configuration."""
    service = config.get("service")
    return isinstance(service, dict) and "pipelines" in service


def check(config: Mapping[str, Any]) -> list[Finding]:
    """Find all problems of a configuration."""
    findings = [
        Finding(key, f"unknown section; must be one of {', '.join((*SECTIONS, 'service'))}")
        for key in config
        if key not in (*SECTIONS, "service")
    ]
    defined = {section: _component_ids(config, section, findings) for section in SECTIONS}
    service = config.get("service")
    if not isinstance(service, dict):
        findings.append(Finding("service", "is missing" if service is None else "not a mapping"))
        return findings
    used: dict[str, set[str]] = {section: set() for section in SECTIONS}
    _check_pipelines(service, defined, used, findings)
    for i, name in enumerate(_names(service.get("extensions"), "service.extensions", findings)):
        _check_reference(name, f"service.extensions.{i}", ("extensions",), defined, used, findings)
    for section, names in defined.items():
        findings += [
            Finding(f"{section}.{name}", "is defined but not used", is_error=False)
            for name in sorted(names - used[section])
        ]
        if isinstance(config.get(section), dict):
            for path, key, value in _leaves(config[section], section):
                findings += _check_leaf(path, key, value)
    return findings


def components(config: Mapping[str, Any]) -> dict[str, set[str]]:
    """Section → types of the components that a configuration defines."""
    return {
        section: {str(name).partition("/")[0] for name in config[section]}
        for section in SECTIONS
        if isinstance(config.get(section), dict)
    }


def _component_ids(config: Mapping[str, Any], section: str, findings: list[Finding]) -> set[str]:
    value = config.get(section)
    if value is None or _has_placeholder(value):
        return set()
    if not isinstance(value, dict):
        findings.append(Finding(section, "not a mapping of components"))
        return set()
    findings += [
        Finding(f"{section}.{name}", f"{name!r} is not a component id (TYPE or TYPE/NAME)")
        for name in value
        if not _ID.match(name) and not _has_placeholder(name)
    ]
    return set(value)


def _check_pipelines(
    service: Mapping[str, Any], defined: dict[str, set[str]], used: dict[str, set[str]], findings: list[Finding]
) -> None:
    pipelines = service.get("pipelines")
    if not isinstance(pipelines, dict) or not pipelines:
        findings.append(Finding("service.pipelines", "must have at least one pipeline"))
        return
    ends: dict[str, set[str]] = {"receivers": set(), "exporters": set()}
    for name, pipeline in pipelines.items():
        path = f"service.pipelines.{name}"
        if name.partition("/")[0] not in SIGNALS:
            findings.append(Finding(path, f"{name!r} is not one of {', '.join(SIGNALS)}, with or without /NAME"))
        if not isinstance(pipeline, dict):
            if not _has_placeholder(pipeline):
                findings.append(Finding(path, "not a mapping"))
            continue
        findings += [Finding(f"{path}.{key}", "unknown key") for key in pipeline if key not in SECTIONS[:3]]
        for role, sections in (
            ("receivers", ("receivers", "connectors")),
            ("processors", ("processors",)),
            ("exporters", ("exporters", "connectors")),
        ):
            names = _names(pipeline.get(role), f"{path}.{role}", findings)
            if role != "processors" and not names and not _has_placeholder(pipeline.get(role)):
                findings.append(Finding(f"{path}.{role}", "must name at least one"))
            for i, item in enumerate(names):
                _check_reference(item, f"{path}.{role}.{i}", sections, defined, used, findings)
                if item in defined["connectors"] and role in ends:
                    ends[role].add(item)
    for name in sorted(ends["receivers"] ^ ends["exporters"]):
        missing = "an exporter" if name in ends["receivers"] else "a receiver"
        findings.append(Finding(f"connectors.{name}", f"must also be {missing} of a pipeline"))


def _names(value: Any, path: str, findings: list[Finding]) -> list[str]:
    if value is None or _has_placeholder(value):
        return []
    if not isinstance(value, list):
        findings.append(Finding(path, "not a list of component ids"))
        return []
    return [str(item) for item in value]


def _check_reference(
    name: str,
    path: str,
    sections: tuple[str, ...],
    defined: dict[str, set[str]],
    used: dict[str, set[str]],
    findings: list[Finding],
) -> None:
    if _has_placeholder(name):
        return
    for section in sections:
        if name in defined[section]:
            used[section].add(name)
            return
    findings.append(Finding(path, f"{name} is not defined in {' or '.join(sections)}"))


def _leaves(value: Any, path: str, key: str = "") -> Iterator[tuple[str, str, Any]]:
    if isinstance(value, dict):
        for name, child in value.items():
            yield from _leaves(child, f"{path}.{name}", str(name))
    elif isinstance(value, list):
        for i, child in enumerate(value):
            yield from _leaves(child, f"{path}.{i}")
    else:
        yield path, key, value


def _check_leaf(path: str, key: str, value: Any) -> list[Finding]:
    if not isinstance(value, str) or _has_placeholder(value):
        return []
    if _DURATION_KEYS.search(key) and not _DURATION.match(value):
        return [Finding(path, f"{value!r} is not a duration such as 30s, 1m30s")]
    if key == "endpoint" and (not value or not _ENDPOINT.match(value) or not _port_fits(value)):
        return [Finding(path, f"{value!r} is not HOST:PORT or a URL")]
    return []


def _port_fits(endpoint: str) -> bool:
    match = _ENDPOINT.match(endpoint)
    port = match.group(4) if match else None
    return port is None or not port.isdigit() or 0 <= int(port) <= 65535


def _has_placeholder(value: Any) -> bool:
    return isinstance(value, str) and _PLACEHOLDER.search(value) is not None
