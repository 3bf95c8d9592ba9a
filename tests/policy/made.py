"""Helpers for tests: templates."""

from __future__ import annotations

from typing import Any

from relay.policy.model import ConfigTemplate, Variable


def template(config: dict[str, Any], *variables: Variable, content_type: str = "text/yaml") -> ConfigTemplate:
    return ConfigTemplate.model_validate(
        {
            "apiVersion": "opamp.io/v1",
            "kind": "ConfigTemplate",
            "metadata": {"name": "t", "version": "v1"},
            "spec": {
                "variables": [v.model_dump(exclude_unset=True) for v in variables],
                "config": config,
                "content_type": content_type,
            },
        }
    )


RATE = Variable(name="rate", type="float", default=0.1)


NAME = Variable(name="name", type="string", required=True)
