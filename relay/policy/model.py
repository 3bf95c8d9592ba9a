"""The documents of configs that people write (`apiVersion: opamp.io/v1`): templates, assignments, region variables."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from relay.documents import canonical_json
from relay.ids import sha256

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
LABEL = r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,127}$"
Name = Annotated[str, Field(pattern=NAME)]


def _text(value: Any) -> Any:
    # `version: 1.10` is a number to YAML and would lose its zero; `v1.10` and "1.10" are text.
    if isinstance(value, int | float) and not isinstance(value, bool):
        raise ValueError(f"{value} is read as a number; write it in quotes")
    return value


_MEDIA_TYPE = r"""^[A-Za-z0-9!#$&^_.+-]+/[A-Za-z0-9!#$&^_.+-]+( *; *[A-Za-z0-9_.+-]+=("[^"]*"|[^\s;"]+))*$"""
"""RFC 9110, 8.3.1."""
Version = Annotated[str, BeforeValidator(_text), Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,63}$")]
Scalar = str | int | float | bool
Term = tuple[str, str, bytes]
"""(`label` or `attribute`, key, canonical form of the value)."""


def canonical(value: Any) -> bytes:
    """The form in which selector and agent values are compared; 1.0 and 1 are equal."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    try:
        return canonical_json(value)
    except ValueError:  # a NaN that an agent reports equals nothing
        return b"NaN"


class Model(BaseModel):
    """Base of all documents: frozen, strict about types, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Metadata(Model):
    """Names a document."""

    name: Name
    labels: dict[Annotated[str, Field(pattern=LABEL)], Annotated[str, Field(max_length=256)]] = Field(
        default_factory=dict
    )
    """Of the document, for people: `apply --prune -l` goes by them. No part of what it says."""


class Selector(Model):
    """Whom a document is for: all that is named must match; empty matches every agent."""

    labels: dict[str, Scalar] = Field(default_factory=dict)
    """What is trusted: the region, labels of the credential, attributes that settings name as trusted."""
    attributes: dict[str, Scalar] = Field(default_factory=dict)
    """What the agent says of itself."""
    agent_ids: list[str] = Field(default_factory=list, max_length=10_000)

    @cached_property
    def terms(self) -> tuple[Term, ...]:
        """The labels and attributes, in a fixed order."""
        return (
            *(("label", key, canonical(value)) for key, value in sorted(self.labels.items())),
            *(("attribute", key, canonical(value)) for key, value in sorted(self.attributes.items())),
        )

    @cached_property
    def identity(self) -> bytes:
        """Equal for selectors that say the same; short, also where they name ten thousand agents."""
        terms = [[source, key, value.decode()] for source, key, value in self.terms]
        return sha256(canonical_json([terms, sorted(self.agent_ids)]))


class Variable(Model):
    """One variable of a template."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$")]
    type: Literal["string", "int", "float", "bool", "list", "map"]
    description: str = ""
    required: bool = False
    default: Any = None
    enum: list[Any] | None = Field(default=None, min_length=1)
    min: int | float | None = None
    max: int | float | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Variable:
        if self.type not in ("int", "float") and (self.min is not None or self.max is not None):
            raise ValueError("min and max are for int and float")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError("min is greater than max")
        if self.required and self.default is not None:
            raise ValueError("a required variable cannot have a default")
        for value in self.enum or []:
            if (reason := _type_problem(self.type, value)) is not None:
                raise ValueError(f"enum: {reason}")
        if self.default is not None and (reason := self.problem_with(self.default)) is not None:
            raise ValueError(f"default: {reason}")
        return self

    def problem_with(self, value: Any) -> str | None:
        """Why `value` may not be this variable's; None if it may."""
        if (reason := _type_problem(self.type, value)) is not None:
            return reason
        if self.enum is not None and not any(canonical_json(value) == canonical_json(e) for e in self.enum):
            return f"{value!r} is not one of {', '.join(map(str, self.enum))}"
        if self.min is not None and value < self.min:
            return f"{value} is less than the minimum, {self.min}"
        if self.max is not None and value > self.max:
            return f"{value} is greater than the maximum, {self.max}"
        return None


def _type_problem(kind: str, value: Any) -> str | None:
    fits = {
        "string": isinstance(value, str),
        "int": isinstance(value, int) and not isinstance(value, bool),
        "float": isinstance(value, int | float) and not isinstance(value, bool),
        "bool": isinstance(value, bool),
        "list": isinstance(value, list),
        "map": isinstance(value, dict),
    }[kind]
    return None if fits else f"{value!r} is not of type {kind}"


TREE_TYPES = ("text/yaml", "application/json")


class TemplateMetadata(Metadata):
    """NAME@VERSION of a template; immutable once applied."""

    version: Version


class TemplateSpec(Model):
    """The body of a template."""

    variables: list[Variable] = Field(default_factory=list)
    config: dict[str, Any] | None = Field(default=None, min_length=1)
    """A tree; placeholders take typed values."""
    text: str | None = Field(default=None, min_length=1)
    """Any other config (Fluent Bit, telegraf, …); placeholders take text."""
    content_type: Annotated[str, Field(pattern=_MEDIA_TYPE, max_length=200)] = "text/yaml"
    """Of a tree one of YAML and JSON; of text whatever the agent expects."""

    @model_validator(mode="before")
    @classmethod
    def _plain_by_default(cls, value: Any) -> Any:
        if isinstance(value, dict) and "text" in value and "content_type" not in value:
            return {**value, "content_type": "text/plain"}
        return value

    @model_validator(mode="after")
    def _one_form(self) -> TemplateSpec:
        if (self.config is None) == (self.text is None):
            raise ValueError("a template has either config or text")
        if self.config is not None and self.content_type not in TREE_TYPES:
            raise ValueError(f"content_type: with config, one of {', '.join(TREE_TYPES)}; with text, any")
        return self

    @property
    def body(self) -> dict[str, Any] | str:
        """The one that it has."""
        return self.config if self.config is not None else self.text or ""

    @field_validator("variables")
    @classmethod
    def _named_once(cls, variables: list[Variable]) -> list[Variable]:
        names = [v.name for v in variables]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"variable {name} is declared twice")
        return variables


class ConfigTemplate(Model):
    """One config with variables. One template fills one slot."""

    apiVersion: Literal["opamp.io/v1"]
    kind: Literal["ConfigTemplate"]
    metadata: TemplateMetadata
    spec: TemplateSpec

    @property
    def key(self) -> str:
        """What it is stored under."""
        return f"{self.metadata.name}@{self.metadata.version}"


class VersionRef(Model):
    """Names one version of a template, or of a package."""

    name: Name
    version: Version

    @property
    def key(self) -> str:
        """NAME@VERSION: what that version is stored under."""
        return f"{self.name}@{self.version}"


class Approval(Model):
    """What a change needs before it goes out. What is not said here is as the settings say."""

    required: bool | None = None
    needed: int | None = Field(default=None, ge=1, le=100)
    four_eyes: bool | None = None
    """Whoever made the change cannot approve it."""


class AssignmentSpec(Model):
    """What an assignment says."""

    template: VersionRef
    values: dict[str, Any] = Field(default_factory=dict)
    target_selector: Selector = Selector()
    priority: int = Field(default=0, ge=-1_000_000, le=1_000_000)
    slot: str = Field(default="", pattern=r"^([A-Za-z0-9][A-Za-z0-9._/-]{0,254})?$")
    """Key in the agent's config_map."""
    strategy: Name | None = None
    """The RolloutStrategy by which changes go out; None: at once."""
    approval: Approval | None = None
    """Overrides what the settings say of approvals."""
    observe_only: bool = False
    """Offer nothing; show which agents run something else."""


class ConfigAssignment(Model):
    """Which agents get which template with which values."""

    apiVersion: Literal["opamp.io/v1"]
    kind: Literal["ConfigAssignment"]
    metadata: Metadata
    spec: AssignmentSpec

    @property
    def key(self) -> str:
        """What it is stored under."""
        return self.metadata.name


class RegionVariablesSpec(Model):
    """Values of a region."""

    values: dict[str, Any]


class RegionVariables(Model):
    """Values for all templates rendered in the region of this name; an assignment's own values win over them."""

    apiVersion: Literal["opamp.io/v1"]
    kind: Literal["RegionVariables"]
    metadata: Metadata
    spec: RegionVariablesSpec

    @property
    def key(self) -> str:
        """What it is stored under."""
        return self.metadata.name
