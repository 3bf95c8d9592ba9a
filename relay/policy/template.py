"""Render a template: placeholders are replaced in the parsed tree, and equal inputs give equal bytes.

The renderer has a version number. A revision names the renderer that it needs, and a node without that renderer rejects it:
if two nodes rendered differently, agents would flap.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from relay.documents import canonical_json, leaves
from relay.ids import sha256
from relay.policy.model import ConfigTemplate, Variable

RENDERER = 1
_PLACEHOLDER = re.compile(r"\{\{\s*\.([A-Za-z_][A-Za-z0-9_]*)\s*\}\}")


@dataclass(frozen=True, slots=True)
class Resolved:
    """The values to render a template with, and where each comes from."""

    values: dict[str, Any]
    origins: dict[str, str]
    """Variable → `default`, `region` or `assignment`."""


def placeholders(template: ConfigTemplate) -> Iterator[tuple[str, str]]:
    """(path, variable) of each placeholder in the config."""
    name = "spec.config" if template.spec.config is not None else "spec.text"
    for path, value in leaves(template.spec.body, name):
        if isinstance(value, str):
            for match in _PLACEHOLDER.finditer(value):
                yield path, match.group(1)


def problems_of(template: ConfigTemplate) -> list[tuple[str, str]]:
    """(path, reason) of each placeholder without a declared variable."""
    known = {v.name for v in template.spec.variables}
    return [(path, f"variable {name} is not declared") for path, name in placeholders(template) if name not in known]


def resolve(
    template: ConfigTemplate, values: Mapping[str, Any], region_values: Mapping[str, Any]
) -> tuple[Resolved, list[tuple[str, str]]]:
    """Give each variable its value: the assignment's, else the region's, else the default.

    Undeclared region values are ignored: they are meant for all templates.

    Returns:
        The values, and (variable, reason) of each that is missing, unknown, or not allowed.
    """
    resolved: dict[str, Any] = {}
    origins: dict[str, str] = {}
    declared = {v.name: v for v in template.spec.variables}
    problems = [(name, f"{template.key} has no variable {name}") for name in values.keys() - declared.keys()]
    for name, variable in declared.items():
        value, origin = _pick(variable, values, region_values)
        if value is None:
            if variable.required:
                problems.append((name, f"{template.key} requires a value for {name}"))
            continue
        if (reason := variable.problem_with(value)) is not None:
            problems.append((name, reason))
        resolved[name] = value
        origins[name] = origin
    return Resolved(resolved, origins), problems


def _pick(variable: Variable, values: Mapping[str, Any], region_values: Mapping[str, Any]) -> tuple[Any, str]:
    if values.get(variable.name) is not None:
        return values[variable.name], "assignment"
    if region_values.get(variable.name) is not None:
        return region_values[variable.name], "region"
    return variable.default, "default"


def content_hash(template_digest: bytes, resolved: Resolved, renderer: int) -> bytes:
    """The digest of everything that the rendered bytes depend on."""
    return sha256(canonical_json([template_digest.hex(), resolved.values, renderer]))


def render(template: ConfigTemplate, resolved: Resolved) -> bytes:
    """Render the config in the template's content type. This is renderer 1."""
    return as_bytes(substituted(template, resolved), template.spec.content_type)


def substituted(template: ConfigTemplate, resolved: Resolved) -> Any:
    """The config with its placeholders replaced: a plain value for a tree, a string for text.

    A scalar that consists of one placeholder becomes the typed value. Inside text, a placeholder becomes the value's
    canonical text. A variable without a value becomes null, or empty inside text.
    """
    if template.spec.text is not None:
        return _in_text(template.spec.text, resolved.values)
    return _substitute(template.spec.config, resolved.values)


def as_bytes(tree: Any, content_type: str) -> bytes:
    """Serialise a config. Keys are sorted, since canonical JSON does not keep the order of the document."""
    if isinstance(tree, str):
        return tree.encode()
    if content_type == "application/json":
        return json.dumps(tree, indent=2, sort_keys=True, ensure_ascii=False).encode() + b"\n"
    # Use the pure Python emitter: libyaml wraps long lines differently. Without aliases, equal parts are written out.
    return yaml.dump(
        tree, Dumper=_Dumper, sort_keys=True, allow_unicode=True, default_flow_style=False, width=2**31
    ).encode()


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _substitute(node: Any, values: Mapping[str, Any]) -> Any:
    if isinstance(node, dict):
        return {key: _substitute(child, values) for key, child in node.items()}
    if isinstance(node, list):
        return [_substitute(child, values) for child in node]
    if not isinstance(node, str) or "{{" not in node:
        return node
    whole = _PLACEHOLDER.fullmatch(node.strip())
    if whole:
        return values.get(whole.group(1))
    return _in_text(node, values)


def _in_text(text: str, values: Mapping[str, Any]) -> str:
    return _PLACEHOLDER.sub(lambda match: _as_text(values.get(match.group(1))), text)


def _as_text(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else canonical_json(value).decode()
