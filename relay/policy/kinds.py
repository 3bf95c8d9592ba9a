"""All kinds of documents, and reading one of any kind: checked whole, with every problem named."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from relay.documents import Document
from relay.errors import Problem
from relay.policy.model import NAME, ConfigAssignment, ConfigTemplate, RegionVariables
from relay.policy.packages import PackageAssignment
from relay.policy.signatures import PackageSigningKey
from relay.policy.strategy import RolloutStrategy
from relay.words import close_to, fields_at

AnyDocument = (
    ConfigTemplate | ConfigAssignment | RegionVariables | RolloutStrategy | PackageAssignment | PackageSigningKey
)


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of documents, and all that it is called."""

    name: str
    """In documents."""
    model: type[AnyDocument]
    plural: str
    """In the API, and in lists."""
    singular: str
    field: str
    """In a catalog."""
    others: tuple[str, ...] = ()
    """What people may call it besides, on the command line."""

    @property
    def words(self) -> tuple[str, ...]:
        """All that people may call it, in lower case."""
        return tuple(dict.fromkeys((self.plural, self.singular, self.name.lower(), *self.others)))

    @property
    def is_assignment(self) -> bool:
        """Whether its documents say what agents get."""
        return self.field.endswith("assignments")


KINDS = {
    kind.name: kind
    for kind in (
        Kind("ConfigTemplate", ConfigTemplate, "templates", "template", "templates", ("configtemplates",)),
        Kind("RegionVariables", RegionVariables, "regionvariables", "regionvariable", "variables", ("variables",)),
        Kind("RolloutStrategy", RolloutStrategy, "strategies", "strategy", "strategies", ("rolloutstrategies",)),
        Kind(
            "PackageSigningKey", PackageSigningKey, "signingkeys", "signingkey", "signing_keys", ("packagesigningkeys",)
        ),
        Kind("ConfigAssignment", ConfigAssignment, "assignments", "assignment", "assignments", ("configassignments",)),
        Kind("PackageAssignment", PackageAssignment, "packageassignments", "packageassignment", "package_assignments"),
    )
}
"""By name; those that others name come first."""
BY_PLURAL = {kind.plural: kind for kind in KINDS.values()}
BY_WORD = {word: kind for kind in KINDS.values() for word in kind.words}


def read(document: Document) -> tuple[AnyDocument | None, list[Problem]]:
    """Check one document by itself: its shape, its types, and for a template also its placeholders.

    Returns:
        The document and no problems, or None and all that is wrong with it.
    """
    value = document.value
    if not isinstance(value, dict):
        return None, [document.problem("", "not a mapping")]
    kind = value.get("kind")
    if kind is None:
        return None, [document.problem("", "kind is missing")]
    known = KINDS.get(kind) if isinstance(kind, str) else None
    if known is None:
        return None, [
            document.problem("kind", f"{kind!r} is not one of {', '.join(KINDS)}{close_to(str(kind), KINDS)}")
        ]
    try:
        return known.model.model_validate(value), []
    except ValidationError as error:
        return None, [_problem(document, known.model, item) for item in error.errors(include_url=False)]


def _problem(document: Document, model: type[AnyDocument], item: Any) -> Problem:
    path = ".".join(str(part) for part in item["loc"] if part not in ("str", "int", "float", "bool"))
    reason = item["msg"].removeprefix("Value error, ")
    if item["type"] == "extra_forbidden":
        *parents, key = item["loc"]
        reason = f"unknown key{close_to(str(key), fields_at(model, parents))}"
    elif item["type"] == "missing":
        reason = "is missing"
    elif item["type"] == "string_pattern_mismatch":
        named = item["ctx"]["pattern"] == NAME
        form = "a valid name here (letters, digits, . _ -)" if named else f"of the form {item['ctx']['pattern']}"
        reason = f"{item['input']!r} is not {form}"
    return document.problem(path, reason)
