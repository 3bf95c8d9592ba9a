"""Strict YAML: YAML 1.2 core scalars, no duplicate keys, bounded aliases, a line number for every value.

`parse` reads everything that people write: settings and policy documents. It checks the size before parsing, so that a
hostile document costs no more than its own length. Durations are here because both settings and policy use them.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from relay.errors import Problem, Refused

Scalar = str | int | float | bool
"""A plain value of documents, labels and attributes."""

MAX_DOCUMENT_BYTES = 1 << 20
MAX_DEPTH = 64
MAX_NODES = 100_000
"""Values in one document after alias expansion. 1 MiB of `- a` is half of this; an alias bomb is far over it."""
MAX_DOCUMENTS = 1_000
MAX_DURATION_S = 10 * 365 * 86400.0

_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_INF = re.compile(r"[-+]?\.(inf|Inf|INF)")
_NULLS = frozenset({"", "null", "Null", "NULL", "~"})
_BOOLS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_MAX_DURATION_CHARS = 40
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|[smhd]))+")
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|[smhd])")


@dataclass(slots=True)
class Document:
    """One YAML document: its value as plain Python, and the line of each part."""

    source: str
    value: Any
    line: int
    lines: dict[str, int] = field(default_factory=dict)
    """Dotted path → 1-based line."""

    def problem(self, path: str, reason: str) -> Problem:
        """A problem at `path`, with the line of the nearest part that exists."""
        probe = path
        while probe and probe not in self.lines:
            probe = probe.rpartition(".")[0]
        return Problem(self.source, self.lines.get(probe, self.line), path, reason)


def parts_of(documents: Iterable[Document]) -> Iterator[Document]:
    """Yield each document; a list of documents, as `get … -o yaml` prints it, is split."""
    for document in documents:
        if not isinstance(document.value, list):
            yield document
            continue
        lines: dict[str, dict[str, int]] = {}
        for path, line in document.lines.items():
            index, dot, rest = path.partition(".")
            if dot:
                lines.setdefault(index, {})[rest] = line
        for i, value in enumerate(document.value):
            first_line = document.lines.get(str(i), document.line)
            yield Document(document.source, value, first_line, lines.get(str(i), {}))


def parse(text: str | bytes, source: str) -> list[Document]:
    """Parse all documents of a YAML or JSON text, leaving out empty ones.

    Raises:
        Refused: too large, not UTF-8, not YAML, a duplicate or non-scalar key, nested too deeply, or too many aliases.
    """
    try:
        raw = text.encode() if isinstance(text, str) else text
    except UnicodeEncodeError:
        raise Refused([Problem(source, 0, "", "not valid Unicode")]) from None
    if len(raw) > MAX_DOCUMENT_BYTES:
        raise Refused([Problem(source, 0, "", f"{len(raw)} bytes is more than the maximum, {MAX_DOCUMENT_BYTES}")])
    try:
        decoded = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Refused([Problem(source, raw.count(b"\n", 0, error.start) + 1, "", "not UTF-8")]) from None
    documents: list[Document] = []
    loader = _new_loader(decoded)
    try:
        _check_depth(decoded, source)
        while loader.check_node():
            node = loader.get_node()
            if node is None:
                continue
            if len(documents) >= MAX_DOCUMENTS:
                raise Refused([Problem(source, 0, "", f"more than {MAX_DOCUMENTS} documents")])
            document = Document(source, None, node.start_mark.line + 1)
            document.value = _Builder(document).build(node, "", 0)
            if document.value is not None:
                documents.append(document)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        reason = getattr(error, "problem", None) or str(error).splitlines()[0]
        if mark and _begins_with_tab(decoded, mark.line):
            reason = "a line begins with a tab; YAML is indented with spaces"
        raise Refused([Problem(source, mark.line + 1 if mark else 0, "", f"not YAML: {reason}")]) from None
    except RecursionError:
        raise Refused([Problem(source, 0, "", "nested too deeply")]) from None
    finally:
        loader.dispose()
    return documents


def _begins_with_tab(text: str, line: int) -> bool:
    content = next(iter(text.splitlines()[line : line + 1]), "")
    return "\t" in content[: len(content) - len(content.lstrip())]


def _check_depth(text: str, source: str) -> None:
    """Check the depth on the event stream, because composing nodes recurses in C."""
    depth = 0
    for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                raise Refused([Problem(source, _line(event), "", f"nested more than {MAX_DEPTH} levels deep")])
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark is not None else 0


def _new_loader(text: str) -> Any:
    # Use libyaml's parser if PyYAML was built with it. Only nodes are composed; tags are never constructed.
    return getattr(yaml, "CSafeLoader", yaml.SafeLoader)(text)


class _Builder:
    """Converts composed nodes to plain values."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._nodes = 0

    def build(self, node: yaml.Node, path: str, depth: int) -> Any:
        line = node.start_mark.line + 1
        self._document.lines.setdefault(path, line)
        self._nodes += 1
        if depth > MAX_DEPTH:
            self._refuse(line, path, f"nested more than {MAX_DEPTH} levels deep")
        if self._nodes > MAX_NODES:
            self._refuse(line, path, f"more than {MAX_NODES} values once aliases are expanded")
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path, line)
        if isinstance(node, yaml.SequenceNode):
            return [self.build(item, f"{path}.{i}" if path else str(i), depth + 1) for i, item in enumerate(node.value)]
        assert isinstance(node, yaml.MappingNode)
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key_line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                self._refuse(key_line, path, "a key must be a scalar")
            key = key_node.value
            if key == "<<" and not key_node.style:
                self._refuse(key_line, path, "merge keys (<<) are not part of YAML 1.2")
            child = f"{path}.{key}" if path else key
            if key in mapping:
                self._refuse(key_line, child, "duplicate key")
            mapping[key] = self.build(value_node, child, depth + 1)
            self._document.lines[child] = key_line
        return mapping

    def _scalar(self, node: yaml.ScalarNode, path: str, line: int) -> Any:
        # libyaml gives a plain scalar the style "" or None; any other style is quoted or a block, and so a string.
        if node.style or node.tag == "!":
            return node.value
        if not node.tag.startswith("tag:yaml.org,2002:"):
            self._refuse(line, path, f"unknown tag {node.tag}")
        value = core_scalar(node.value)
        if isinstance(value, float) and not math.isfinite(value):
            self._refuse(line, path, "not a finite number")
        return value

    def _refuse(self, line: int, path: str, reason: str) -> None:
        raise Refused([Problem(self._document.source, line, path, reason)])


def core_scalar(text: str) -> Any:
    """Resolve a plain scalar by the YAML 1.2 core schema (10.3): `on` and `12:30` are strings."""
    if text in _NULLS:
        return None
    if text in _BOOLS:
        return _BOOLS[text]
    if _INT.fullmatch(text):
        return (
            int(text, 8 if text.startswith("0o") else 16 if text.startswith("0x") else 10) if len(text) <= 40 else text
        )
    if _FLOAT.fullmatch(text):
        return float(text)
    if _INF.fullmatch(text):
        return -math.inf if text.startswith("-") else math.inf
    if text in (".nan", ".NaN", ".NAN"):
        return math.nan
    return text


@functools.lru_cache(maxsize=256)
def parse_duration(text: str) -> float:
    """Convert `30m`, `1h30m`, `250ms` or `7d` to seconds.

    Raises:
        ValueError: not a duration, or longer than ten years.
    """
    if len(text) > _MAX_DURATION_CHARS or not _DURATION.fullmatch(text):
        raise ValueError(f"{text[:40]!r} is not a duration such as 30s, 15m, 1h30m, 90d")
    seconds = sum(float(number) * _UNITS[unit] for number, unit in _DURATION_PART.findall(text))
    if seconds > MAX_DURATION_S:
        raise ValueError(f"{text[:40]} is longer than ten years")
    return seconds


def canonical_json(value: Any) -> bytes:
    """Encode equal values as equal bytes: sorted keys, no spaces, UTF-8. Digests are computed over these bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every scalar of a plain value with its dotted path, in order."""
    if isinstance(value, dict):
        for key, child in value.items():
            yield from leaves(child, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for i, child in enumerate(value):
            yield from leaves(child, f"{path}.{i}" if path else str(i))
    else:
        yield path, value
