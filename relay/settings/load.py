"""Load settings: file, then environment, then flags. Reports all problems at once and tracks each value's origin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import ValidationError

from relay.documents import Document, core_scalar, leaves, parse
from relay.errors import Problem, Refused, SettingsError
from relay.settings import guide
from relay.settings.checks import cross_check
from relay.settings.parts import Part
from relay.words import fields_at, suggestion

ENVIRONMENT_PREFIX = "OPAMP_RELAY_"
S = TypeVar("S", bound=Part)


@dataclass(frozen=True, slots=True)
class Loaded(Generic[S]):
    """Settings, and where each leaf was set."""

    settings: S
    origins: dict[str, str]
    """Dotted path → `FILE:LINE`, `$VARIABLE` or `command line`; paths that are absent have their defaults."""


def load(
    kind: type[S],
    *,
    file: str | None = None,
    environment: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
) -> Loaded[S]:
    """Load the settings of one program.

    Args:
        kind: the program's settings model.
        file: a YAML file; None for the defaults.
        environment: `OPAMP_RELAY_SERVER__HTTP__ENDPOINT=…` sets server.http.endpoint; values are YAML scalars.
        flags: dotted path → value; None values are skipped.

    Raises:
        SettingsError: lists every problem.
    """
    document = _read(file) if file else Document("defaults", {}, 0)
    if not isinstance(document.value, dict):
        raise SettingsError([document.problem("", "expected a mapping of settings")])
    values: dict[str, Any] = document.value
    origins = {path: f"{document.source}:{document.lines.get(path, 0)}" for path, _ in leaves(values)}
    problems: list[Problem] = []
    overrides: dict[str, tuple[str, Any]] = {}
    for name, text in (environment or {}).items():
        if name.startswith(ENVIRONMENT_PREFIX):
            path = name.removeprefix(ENVIRONMENT_PREFIX).lower().replace("__", ".")
            overrides[path] = (f"${name}", core_scalar(text))
    for path, value in (flags or {}).items():
        if value is not None:
            overrides[path] = ("command line", value)
    for path, (origin, value) in overrides.items():
        if _put(values, path.split("."), value):
            origins[path] = origin
        else:
            problems.append(Problem(origin, 0, path, "lies below a value that is not a mapping"))

    def problem(path: str, reason: str) -> Problem:
        for override, (origin, _) in overrides.items():
            if override == path or override.startswith(f"{path}."):
                return Problem(origin, 0, path, reason)
        return document.problem(path, reason)

    problems += _guide_problems(values, problem)
    try:
        settings = kind.model_validate(values)
    except ValidationError as invalid:
        raise SettingsError(_unique([*problems, *_pydantic_problems(kind, invalid, problem)])) from None
    problems += [problem(path, reason) for path, reason in cross_check(settings)]
    if problems:
        raise SettingsError(problems)
    return Loaded(settings, origins)


def _read(file: str) -> Document:
    try:
        raw = Path(file).read_bytes()
    except OSError as unreadable:
        raise SettingsError([Problem(file, 0, "", unreadable.strerror or str(unreadable))]) from None
    try:
        documents = parse(raw, file)
    except Refused as refused:
        raise SettingsError(refused.problems) from None
    if len(documents) > 1:
        raise SettingsError([documents[1].problem("", "expected one document")])
    return documents[0] if documents else Document(file, {}, 1)


def _put(values: dict[str, Any], path: list[str], value: Any) -> bool:
    for key in path[:-1]:
        child = values.setdefault(key, {})
        if not isinstance(child, dict):
            return False
        values = child
    values[path[-1]] = value
    return True


def _guide_problems(values: dict[str, Any], problem: Any) -> list[Problem]:
    """Refuse the guide's keys that are not supported, and delete them so that each is reported once."""
    problems: list[Problem] = []
    for path, reason in guide.REFUSED.items():
        *parents, last = path.split(".")
        section: Any = values
        for key in parents:
            section = section.get(key) if isinstance(section, dict) else None
        if isinstance(section, dict) and last in section:
            problems.append(problem(path, reason))
            del section[last]
            if parents and not section and parents[-1] in ("storage", "policies"):
                values.pop(parents[-1], None)
    return problems


def _pydantic_problems(kind: type[Part], error: ValidationError, problem: Any) -> list[Problem]:
    problems = []
    for item in error.errors(include_url=False, include_context=False):
        path = ".".join(str(part) for part in item["loc"] if not str(part).startswith(("literal", "tuple", "function")))
        if item["type"] == "extra_forbidden":
            *parents, key = item["loc"]
            reason = f"unknown key{suggestion(str(key), fields_at(kind, parents))}"
        else:
            reason = item["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
            if reason[:1].islower() and item["type"] != "value_error":
                reason = f"should be {reason}"
        problems.append(problem(path, reason))
    return problems


def _unique(problems: list[Problem]) -> list[Problem]:
    return list(dict.fromkeys(problems))
