"""Read a document of any kind and report all of its problems."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from relay.documents import Document
from relay.errors import Problem
from relay.policy.kinds import KINDS
from relay.policy.model import NAME, ConfigAssignment, ConfigTemplate, RegionVariables
from relay.policy.packages import PackageAssignment
from relay.policy.role_binding import RoleBinding
from relay.policy.signatures import PackageSigningKey
from relay.policy.strategy import RolloutStrategy
from relay.words import fields_at, suggestion

AnyDocument = (
    ConfigTemplate
    | ConfigAssignment
    | RegionVariables
    | RolloutStrategy
    | PackageAssignment
    | PackageSigningKey
    | RoleBinding
)
MODELS: dict[str, type[AnyDocument]] = {model.__name__: model for model in AnyDocument.__args__}
"""Kind → model."""


def read(document: Document) -> tuple[AnyDocument | None, list[Problem]]:
    """Check the structure and types of one document, without looking at others.

    Returns:
        The document and no problems, or None and all problems.
    """
    value = document.value
    if not isinstance(value, dict):
        return None, [document.problem("", "not a mapping")]
    kind = value.get("kind")
    if kind is None:
        return None, [document.problem("", "kind is missing")]
    model = MODELS.get(kind) if isinstance(kind, str) else None
    if model is None:
        return None, [
            document.problem("kind", f"{kind!r} is not one of {', '.join(KINDS)}{suggestion(str(kind), KINDS)}")
        ]
    try:
        return model.model_validate(value), []
    except ValidationError as error:
        return None, [_problem(document, model, item) for item in error.errors(include_url=False)]


def _problem(document: Document, model: type[AnyDocument], item: Any) -> Problem:
    path = ".".join(str(part) for part in item["loc"] if part not in ("str", "int", "float", "bool"))
    reason = item["msg"].removeprefix("Value error, ")
    if item["type"] == "extra_forbidden":
        *parents, key = item["loc"]
        reason = f"unknown key{suggestion(str(key), fields_at(model, parents))}"
    elif item["type"] == "missing":
        reason = "is missing"
    elif item["type"] == "string_pattern_mismatch":
        is_name = item["ctx"]["pattern"] == NAME
        form = "a valid name (letters, digits, . _ -)" if is_name else f"of the form {item['ctx']['pattern']}"
        reason = f"{item['input']!r} is not {form}"
    return document.problem(path, reason)
