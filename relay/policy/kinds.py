"""All kinds of documents, and what they are called. Without the models: a command must start fast."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of documents, and all that it is called."""

    name: str
    """In documents."""
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
        Kind("ConfigTemplate", "templates", "template", "templates", ("configtemplates",)),
        Kind("RegionVariables", "regionvariables", "regionvariable", "variables", ("variables",)),
        Kind("RolloutStrategy", "strategies", "strategy", "strategies", ("rolloutstrategies",)),
        Kind("PackageSigningKey", "signingkeys", "signingkey", "signing_keys", ("packagesigningkeys",)),
        Kind("ConfigAssignment", "assignments", "assignment", "assignments", ("configassignments",)),
        Kind("PackageAssignment", "packageassignments", "packageassignment", "package_assignments"),
    )
}
"""By name; those that others name come first."""
BY_PLURAL = {kind.plural: kind for kind in KINDS.values()}
BY_WORD = {word: kind for kind in KINDS.values() for word in kind.words}
