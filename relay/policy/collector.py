"""Structure rules of a Collector's configuration: what can be seen to be wrong before any agent is given it.

Only what holds for every distribution: references between sections, forms of names, durations and endpoints. What a
component takes is the component's own to say. Parts with placeholders are not looked into.
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
_UNKNOWN = re.compile(r"\{\{|\$\{|\$[A-Za-z_]")
"""A placeholder of ours, or of the Collector's own environment."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong."""

    path: str
    """Dotted, below the configuration."""
    reason: str
    is_error: bool = True
    """False for what a Collector takes but nobody can have meant."""


def is_collector_config(config: Mapping[str, Any]) -> bool:
    """Whether this is meant for a Collector, and not a file of another kind."""
    service = config.get("service")
    return isinstance(service, dict) and "pipelines" in service


def check(config: Mapping[str, Any]) -> list[Finding]:
    """All that is wrong with a configuration."""
    found = [
        Finding(key, f"unknown section; there are {', '.join((*SECTIONS, 'service'))}")
        for key in config
        if key not in (*SECTIONS, "service")
    ]
    defined = {section: _defined(config, section, found) for section in SECTIONS}
    service = config.get("service")
    if not isinstance(service, dict):
        found.append(Finding("service", "is missing" if service is None else "not a mapping"))
        return found
    used: dict[str, set[str]] = {section: set() for section in SECTIONS}
    _pipelines(service, defined, used, found)
    for i, name in enumerate(_names(service.get("extensions"), "service.extensions", found)):
        _refer(name, f"service.extensions.{i}", ("extensions",), defined, used, found)
    for section, names in defined.items():
        found += [
            Finding(f"{section}.{name}", "is defined and not used", is_error=False)
            for name in sorted(names - used[section])
        ]
        if isinstance(config.get(section), dict):
            for path, key, value in _leaves(config[section], section):
                found += _leaf(path, key, value)
    return found


def components(config: Mapping[str, Any]) -> dict[str, set[str]]:
    """Section → component types that a configuration names."""
    return {
        section: {str(name).partition("/")[0] for name in config[section]}
        for section in SECTIONS
        if isinstance(config.get(section), dict)
    }


def _defined(config: Mapping[str, Any], section: str, found: list[Finding]) -> set[str]:
    held = config.get(section)
    if held is None or _is_unknown(held):
        return set()
    if not isinstance(held, dict):
        found.append(Finding(section, "not a mapping of components"))
        return set()
    found += [
        Finding(f"{section}.{name}", f"{name!r} is not a component id (TYPE or TYPE/NAME)")
        for name in held
        if not _ID.match(name) and not _is_unknown(name)
    ]
    return set(held)


def _pipelines(
    service: Mapping[str, Any], defined: dict[str, set[str]], used: dict[str, set[str]], found: list[Finding]
) -> None:
    pipelines = service.get("pipelines")
    if not isinstance(pipelines, dict) or not pipelines:
        found.append(Finding("service.pipelines", "must have at least one pipeline"))
        return
    ends: dict[str, set[str]] = {"receivers": set(), "exporters": set()}
    for name, pipeline in pipelines.items():
        path = f"service.pipelines.{name}"
        if name.partition("/")[0] not in SIGNALS:
            found.append(Finding(path, f"{name!r} is not one of {', '.join(SIGNALS)}, with or without /NAME"))
        if not isinstance(pipeline, dict):
            if not _is_unknown(pipeline):
                found.append(Finding(path, "not a mapping"))
            continue
        found += [Finding(f"{path}.{key}", "unknown key") for key in pipeline if key not in SECTIONS[:3]]
        for role, sections in (
            ("receivers", ("receivers", "connectors")),
            ("processors", ("processors",)),
            ("exporters", ("exporters", "connectors")),
        ):
            names = _names(pipeline.get(role), f"{path}.{role}", found)
            if role != "processors" and not names and not _is_unknown(pipeline.get(role)):
                found.append(Finding(f"{path}.{role}", "must name at least one"))
            for i, item in enumerate(names):
                _refer(item, f"{path}.{role}.{i}", sections, defined, used, found)
                if item in defined["connectors"] and role in ends:
                    ends[role].add(item)
    for name in sorted(ends["receivers"] ^ ends["exporters"]):
        missing = "an exporter" if name in ends["receivers"] else "a receiver"
        found.append(Finding(f"connectors.{name}", f"must be {missing} of a pipeline as well"))


def _names(value: Any, path: str, found: list[Finding]) -> list[str]:
    if value is None or _is_unknown(value):
        return []
    if not isinstance(value, list):
        found.append(Finding(path, "not a list of component ids"))
        return []
    return [str(item) for item in value]


def _refer(
    name: str,
    path: str,
    sections: tuple[str, ...],
    defined: dict[str, set[str]],
    used: dict[str, set[str]],
    found: list[Finding],
) -> None:
    if _is_unknown(name):
        return
    for section in sections:
        if name in defined[section]:
            used[section].add(name)
            return
    found.append(Finding(path, f"{name} is not defined in {' or '.join(sections)}"))


def _leaves(value: Any, path: str, key: str = "") -> Iterator[tuple[str, str, Any]]:
    if isinstance(value, dict):
        for name, child in value.items():
            yield from _leaves(child, f"{path}.{name}", str(name))
    elif isinstance(value, list):
        for i, child in enumerate(value):
            yield from _leaves(child, f"{path}.{i}")
    else:
        yield path, key, value


def _leaf(path: str, key: str, value: Any) -> list[Finding]:
    if not isinstance(value, str) or _is_unknown(value):
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


def _is_unknown(value: Any) -> bool:
    return isinstance(value, str) and _UNKNOWN.search(value) is not None
