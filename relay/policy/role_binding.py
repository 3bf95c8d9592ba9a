"""Role bindings: what people who log in at an OpenID provider may do. Nodes never see them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from relay.policy.model import Metadata, Model

_TEXT = r"^[^\x00-\x1f\x7f]+$"


class Subject(Model):
    """A person, or a group of people."""

    user: str | None = Field(default=None, min_length=1, max_length=256, pattern=_TEXT)
    """The value of the claim `admin.auth.oidc.user_claim`."""
    group: str | None = Field(default=None, min_length=1, max_length=256, pattern=_TEXT)
    """One of the values of the claim `admin.auth.oidc.groups_claim`."""

    @model_validator(mode="after")
    def _either(self) -> Subject:
        if (self.user is None) == (self.group is None):
            raise ValueError("expected either user or group")
        return self


class BindingScope(Model):
    """The agents that a role is for."""

    labels: dict[str, str] = Field(default_factory=dict, max_length=32)
    """Empty for all agents."""


class RoleBindingSpec(Model):
    """The body of a role binding."""

    role: Literal["viewer", "author", "approver", "operator", "admin"]
    subjects: list[Subject] = Field(min_length=1, max_length=1000)
    scope: BindingScope = BindingScope()


class RoleBinding(Model):
    """Gives a role to people."""

    apiVersion: Literal["opamp.io/v1"]
    kind: Literal["RoleBinding"]
    metadata: Metadata
    spec: RoleBindingSpec

    @property
    def key(self) -> str:
        """The key that the document is stored under."""
        return self.metadata.name
