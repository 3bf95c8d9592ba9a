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


def revision(rate: int = 1, *, variables: bool = False, renderer: int = 1, **values: Any) -> Revision:
    pin = variables_resource(VARIABLES)[0].partition("/")[2] if variables else ""
    digest = sha256(template_resource(TEMPLATE)[1]).hex()
    return Revision(
        template=TEMPLATE.key, template_digest=digest, values={"rate": rate, **values}, variables=pin, renderer=renderer
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
) -> Published:
    change = Rollout(id=f"{name}-1", candidate=candidate, threshold=threshold) if candidate else None
    return Published(
        name=name, slot=slot, priority=priority, selector=selector or Selector(), stable=stable, rollout=change
    )


def resources(*assignments: Published) -> dict[str, bytes]:
    return dict(
        [template_resource(TEMPLATE), variables_resource(VARIABLES), *(assignment_resource(a) for a in assignments)]
    )
