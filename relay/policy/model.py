"""The config documents that people write (`apiVersion: opamp.io/v1`): templates, assignments, region variables."""

from __future__ import annotations

import re
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from relay.documents import Scalar, canonical_json
from relay.ids import sha256

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
LABEL = r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,127}$"
Name = Annotated[str, Field(pattern=NAME)]


def _text(value: Any) -> Any:
    # YAML reads `version: 1.10` as a number and would drop the zero; `v1.10` and "1.10" are text.
    if isinstance(value, int | float) and not isinstance(value, bool):
        raise ValueError(f"{value} is read as a number; write it in quotes")
    return value


_MEDIA_TYPE = r"""^[A-Za-z0-9!#$&^_.+-]+/[A-Za-z0-9!#$&^_.+-]+( *; *[A-Za-z0-9_.+-]+=("[^"]*"|[^\s;"]+))*$"""
"""RFC 9110, section 8.3.1."""
Version = Annotated[str, BeforeValidator(_text), Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,63}$")]
Term = tuple[str, str, bytes]
"""(`label` or `attribute`, key, canonical value)."""


_SECRET_KEY = re.compile(
    r"(password|passwd|passphrase|secret|token|authorization|credentials?|connection_?string"
    r"|(api|access|account|private|secret|shared|encryption|license|signing)[-_]?key)(_pem)?$",
    re.IGNORECASE,
)


def is_secret_name(name: str) -> bool:
    """Whether a key or a variable of this name holds a secret, as far as names tell."""
    return _SECRET_KEY.search(name) is not None


def canonical(value: Any) -> bytes:
    """The form in which values of selectors and agents are compared; 1.0 equals 1."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    try:
        return canonical_json(value)
    except ValueError:  # an agent may report NaN, which matches no selector
        return b"NaN"


class Model(BaseModel):
    """Base of all documents: frozen, strict about types, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Metadata(Model):
    """Identifies a document."""

    name: Name
    labels: dict[Annotated[str, Field(pattern=LABEL)], Annotated[str, Field(max_length=256)]] = Field(
        default_factory=dict
    )
    """Labels of the document itself, for `apply --prune -l`. They do not affect agents."""


class Selector(Model):
    """Which agents a document is for: every condition must match; an empty selector matches all agents."""

    labels: dict[str, Scalar] = Field(default_factory=dict)
    """Trusted: the region, labels of the credential, attributes that the settings trust."""
    attributes: dict[str, Scalar] = Field(default_factory=dict)
    """What the agent reports of itself."""
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
        """Equal for equivalent selectors. Short even for ten thousand agent ids."""
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
        """Why `value` is not allowed; None if it is. A value that may be secret is not repeated."""
        reason = self._problem_with(value)
        return "its value is not allowed by its declaration" if reason and is_secret_name(self.name) else reason

    def _problem_with(self, value: Any) -> str | None:
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
    is_type = {
        "string": isinstance(value, str),
        "int": isinstance(value, int) and not isinstance(value, bool),
        "float": isinstance(value, int | float) and not isinstance(value, bool),
        "bool": isinstance(value, bool),
        "list": isinstance(value, list),
        "map": isinstance(value, dict),
    }[kind]
    return None if is_type else f"{value!r} is not of type {kind}"


TREE_TYPES = ("text/yaml", "application/json")


class TemplateMetadata(Metadata):
    """Identifies a template by NAME@VERSION. A version is immutable once applied."""

    version: Version


class TemplateSpec(Model):
    """The body of a template."""

    variables: list[Variable] = Field(default_factory=list)
    config: dict[str, Any] | None = Field(default=None, min_length=1)
    """A tree; placeholders take typed values."""
    text: str | None = Field(default=None, min_length=1)
    """Any other config (Fluent Bit, Telegraf, …); placeholders take text."""
    content_type: Annotated[str, Field(pattern=_MEDIA_TYPE, max_length=200)] = "text/yaml"
    """YAML or JSON for a tree; whatever the agent expects for text."""

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
            raise ValueError(
                f"content_type must be one of {', '.join(TREE_TYPES)} with config; with text it may be any"
            )
        return self

    @property
    def body(self) -> dict[str, Any] | str:
        """`config` or `text`, whichever is set."""
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
        """The key that the document is stored under."""
        return f"{self.metadata.name}@{self.metadata.version}"


class VersionRef(Model):
    """Refers to one version of a template or package."""

    name: Name
    version: Version

    @property
    def key(self) -> str:
        """NAME@VERSION: the key that the version is stored under."""
        return f"{self.name}@{self.version}"


class Approval(Model):
    """The approvals that a change needs before it goes out. None: as the settings say."""

    required: bool | None = None
    needed: int | None = Field(default=None, ge=1, le=100)
    four_eyes: bool | None = None
    """Whoever made the change cannot approve it."""


class AssignmentSpec(Model):
    """The body of an assignment."""

    template: VersionRef
    values: dict[str, Any] = Field(default_factory=dict)
    target_selector: Selector = Selector()
    priority: int = Field(default=0, ge=-1_000_000, le=1_000_000)
    slot: str = Field(default="", pattern=r"^([A-Za-z0-9][A-Za-z0-9._/-]{0,254})?$")
    """Key in the agent's config_map."""
    strategy: Name | None = None
    """The RolloutStrategy for changes; None: they go out at once."""
    approval: Approval | None = None
    """Overrides the approval settings."""
    observe_only: bool = False
    """Offer nothing; only show which agents run something else."""


class ConfigAssignment(Model):
    """Assigns a template and values to agents."""

    apiVersion: Literal["opamp.io/v1"]
    kind: Literal["ConfigAssignment"]
    metadata: Metadata
    spec: AssignmentSpec

    @property
    def key(self) -> str:
        """The key that the document is stored under."""
        return self.metadata.name


class RegionVariablesSpec(Model):
    """The body of region variables."""

    values: dict[str, Any]


class RegionVariables(Model):
    """Values for all templates in the region of this name; an assignment's own values take precedence."""

    apiVersion: Literal["opamp.io/v1"]
    kind: Literal["RegionVariables"]
    metadata: Metadata
    spec: RegionVariablesSpec

    @property
    def key(self) -> str:
        """The key that the document is stored under."""
        return self.metadata.name
