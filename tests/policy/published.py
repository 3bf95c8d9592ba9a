"""Published resources for tests."""

from __future__ import annotations

from typing import Any

from relay.ids import sha256
from relay.policy.model import ConfigTemplate, RegionVariables, Selector
from relay.policy.snapshot import (
    Published,
    Revision,
    Rollout,
    assignment_resource,
    template_resource,
    variables_resource,
)

TEMPLATE = ConfigTemplate.model_validate(
    {
        "apiVersion": "opamp.io/v1",
        "kind": "ConfigTemplate",
        "metadata": {"name": "t", "version": "v1"},
        "spec": {
            "variables": [
                {"name": "rate", "type": "int", "default": 1, "max": 100},
                {"name": "where", "type": "string"},
            ],
            "config": {"rate": "{{.rate}}", "where": "{{.where}}"},
        },
    }
)
VARIABLES = RegionVariables.model_validate(
    {
        "apiVersion": "opamp.io/v1",
        "kind": "RegionVariables",
        "metadata": {"name": "local"},
        "spec": {"values": {"where": "here"}},
    }
)


def revision(
    rate: int = 1, *, variables: bool = False, renderer: int = 1, selector: Selector | None = None, **values: Any
) -> Revision:
    pin = variables_resource(VARIABLES)[0].partition("/")[2] if variables else ""
    return Revision(
        template=TEMPLATE.key,
        template_digest=sha256(template_resource(TEMPLATE)[1]).hex(),
        values={"rate": rate, **values},
        variables=pin,
        renderer=renderer,
        selector=selector or Selector(),
    )


def published(
    name: str = "a",
    *,
    stable: Revision | None = None,
    candidate: Revision | None = None,
    threshold: int = 0,
    priority: int = 0,
    slot: str = "",
    selector: Selector | None = None,
    retry: int = 0,
    **more: Any,
) -> Published:
    """`selector` is for both revisions; `more` goes to the rollout."""
    if selector is not None:
        stable = stable and stable.model_copy(update={"selector": selector})
        candidate = candidate and candidate.model_copy(update={"selector": selector})
    change = Rollout(id=f"{name}-1", candidate=candidate, threshold=threshold, **more) if candidate else None
    return Published(name=name, slot=slot, priority=priority, stable=stable, rollout=change, retry=retry)


def resources(*assignments: Published) -> dict[str, bytes]:
    return dict(
        [template_resource(TEMPLATE), variables_resource(VARIABLES), *(assignment_resource(a) for a in assignments)]
    )
