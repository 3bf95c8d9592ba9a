"""What people call the kinds of documents."""

from __future__ import annotations

from relay.cli.options import usage
from relay.words import close_to

DOCUMENTS = {
    "configtemplates": ("ConfigTemplate", "templates"),
    "configassignments": ("ConfigAssignment", "assignments"),
    "variables": ("RegionVariables", "regionvariables"),
    "templates": ("ConfigTemplate", "templates"),
    "template": ("ConfigTemplate", "templates"),
    "configtemplate": ("ConfigTemplate", "templates"),
    "assignments": ("ConfigAssignment", "assignments"),
    "assignment": ("ConfigAssignment", "assignments"),
    "configassignment": ("ConfigAssignment", "assignments"),
    "regionvariables": ("RegionVariables", "regionvariables"),
    "regionvariable": ("RegionVariables", "regionvariables"),
    "strategies": ("RolloutStrategy", "strategies"),
    "strategy": ("RolloutStrategy", "strategies"),
    "rolloutstrategies": ("RolloutStrategy", "strategies"),
    "rolloutstrategy": ("RolloutStrategy", "strategies"),
    "packageassignments": ("PackageAssignment", "packageassignments"),
    "packageassignment": ("PackageAssignment", "packageassignments"),
    "signingkeys": ("PackageSigningKey", "signingkeys"),
    "signingkey": ("PackageSigningKey", "signingkeys"),
    "packagesigningkeys": ("PackageSigningKey", "signingkeys"),
    "packagesigningkey": ("PackageSigningKey", "signingkeys"),
}
"""Word on the command line → (kind, plural in the API)."""


def plural_of(resource: str) -> str:
    """The API's word for a kind of documents. Ends the command with status 2 where there is none."""
    known = DOCUMENTS.get(resource.lower())
    if known is None:
        raise usage(f"{resource} is no kind of document{close_to(resource, DOCUMENTS)}")
    return known[1]
