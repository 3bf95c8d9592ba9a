"""Helpers for tests: documents."""

from __future__ import annotations

from typing import Any

from tests.conftest import TEMPLATE, assignment

QUICK = "success_criteria: {error_rate_threshold: 0.2, health_check_pass_rate: 0.9}"


def strategy(*stages: str, name: str = "canary", **spec: str) -> str:
    more = "".join(f"  {key}: {value}\n" for key, value in spec.items())
    listed = "".join(f"    - {{{stage}, {QUICK}}}\n" for stage in stages)
    return (
        f"---\napiVersion: opamp.io/v1\nkind: RolloutStrategy\nmetadata: {{name: {name}}}\n"
        f"spec:\n{more}  stages:\n{listed}"
    )


TWO_STAGES = strategy("name: canary, percentage: 10", "name: all, percentage: 100")


def staged(rate: int, name: str = "a", **more: Any) -> str:
    return assignment(name, rate=rate, **more) + "  strategy: canary\n"


TYPED = """
apiVersion: opamp.io/v1
kind: ConfigTemplate
metadata: {name: typed, version: v1}
spec:
  variables: [{name: where, type: string, required: true}]
  config: {where: "{{.where}}"}
"""


def typed(name: str, *, region: str = "", priority: int = 0) -> str:
    selector = f"{{labels: {{region: {region}}}}}" if region else "{}"
    return (
        f"---\napiVersion: opamp.io/v1\nkind: ConfigAssignment\nmetadata: {{name: {name}}}\nspec:\n"
        f"  template: {{name: typed, version: v1}}\n  target_selector: {selector}\n  priority: {priority}\n"
    )


def variables(region: str, values: str) -> str:
    return f"---\napiVersion: opamp.io/v1\nkind: RegionVariables\nmetadata: {{name: {region}}}\nspec: {{values: {values}}}\n"


IN_USE = (
    TEMPLATE,
    TYPED.replace("\n", "\n---\n", 1),
    typed("b", priority=1),
    variables("eu", "{where: x}"),
    assignment("a"),
)
"""Two templates, each with its assignment, and the variables that one needs in region eu."""
