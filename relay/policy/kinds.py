"""The kinds of documents and their names. Does not import the models, so that commands start fast."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of document and its names."""

    name: str
    """Used in documents."""
    plural: str
    """Used in the API and in lists."""
    singular: str
    field: str
    """Used in a catalog."""
    others: tuple[str, ...] = ()
    """More names that the command line accepts."""

    @property
    def words(self) -> tuple[str, ...]:
        """All names that the command line accepts, in lower case."""
        return tuple(dict.fromkeys((self.plural, self.singular, self.name.lower(), *self.others)))

    @property
    def is_assignment(self) -> bool:
        """Whether documents of this kind assign something to agents."""
        return self.field.endswith("assignments")


KINDS = {
    kind.name: kind
    for kind in (
        Kind("ConfigTemplate", "templates", "template", "templates", ("configtemplates",)),
        Kind("RegionVariables", "regionvariables", "regionvariable", "variables", ("variables",)),
        Kind("RolloutStrategy", "strategies", "strategy", "strategies", ("rolloutstrategies",)),
        Kind("PackageSigningKey", "signingkeys", "signingkey", "signing_keys", ("packagesigningkeys",)),
        Kind("RoleBinding", "rolebindings", "rolebinding", "role_bindings"),
        Kind("ConfigAssignment", "assignments", "assignment", "assignments", ("configassignments",)),
        Kind("PackageAssignment", "packageassignments", "packageassignment", "package_assignments"),
    )
}
"""Kinds by name; a kind comes before those that refer to it."""
BY_PLURAL = {kind.plural: kind for kind in KINDS.values()}
BY_WORD = {word: kind for kind in KINDS.values() for word in kind.words}
