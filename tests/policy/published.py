"""Helpers for tests: published resources."""

from __future__ import annotations

from typing import Any

from relay.ids import sha256
from relay.policy.model import ConfigTemplate, RegionVariables, Selector
from relay.policy.published import CONFIG, ConfigRevision, Published, PublishedRollout
from relay.policy.resources import assignment_resource, template_resource, variables_resource
from relay.policy.snapshot import ConfigContent, Content

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
) -> ConfigRevision:
    pin = variables_resource(VARIABLES)[0].partition("/")[2] if variables else ""
    return ConfigRevision(
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
    stable: ConfigRevision | None = None,
    candidate: ConfigRevision | None = None,
    threshold: int = 0,
    priority: int = 0,
    slot: str = "",
    selector: Selector | None = None,
    retry: int = 0,
    **more: Any,
) -> Published:
    """`selector`, `priority` and `slot` apply to both revisions; `more` goes to the rollout."""
    update = {"priority": priority, "slot": slot, **({"selector": selector} if selector is not None else {})}
    stable = stable and stable.model_copy(update=update)
    candidate = candidate and candidate.model_copy(update=update)
    change = PublishedRollout(id=f"{name}-1", candidate=candidate, threshold=threshold, **more) if candidate else None
    return Published(name=name, stable=stable, rollout=change, retry=retry)


def resources(*assignments: Published) -> dict[str, bytes]:
    return dict(
        [
            template_resource(TEMPLATE),
            variables_resource(VARIABLES),
            *(assignment_resource(CONFIG, a) for a in assignments),
        ]
    )


def config(content: Content | None) -> ConfigContent:
    """Narrow a content to that of a config."""
    assert isinstance(content, ConfigContent)
    return content
