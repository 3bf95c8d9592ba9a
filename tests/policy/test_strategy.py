import pytest

from relay.documents import parse
from relay.policy import reading
from relay.policy.strategy import RolloutStrategy

HEAD = "apiVersion: opamp.io/v1\nkind: RolloutStrategy\nmetadata: {name: canary}\nspec:\n"
GUIDE = (
    HEAD
    + """  # as the deployment guide writes them
  stages:
    - name: canary
      percentage: 5
      duration: 30m
      success_criteria: {error_rate_threshold: 0.01, health_check_pass_rate: 0.99}
    - name: rollout
      percentage: 100
      duration: 2h
      success_criteria: {error_rate_threshold: 0.01, health_check_pass_rate: 0.99}
  failure_policy:
    action: rollback
    notification: [slack, email]
  target_selector:
    labels: {region: us-east-1, tier: production}
    agent_ids: [agent-001, agent-002]
"""
)
OURS = (
    HEAD
    + """  spread: per_region
  min_samples: 3
  max_silent: 5m
  on_missing: exclude
  local_guard: {max_failures: 3, min_samples: 5}
  candidate_ttl: 1h30m
  windows: [{days: [mon, tue], start: "09:00", end: "17:00", time_zone: Europe/Berlin}]
  stages:
    - {name: first, regions: [eu], manual: true}
    - {name: rest, percentage: 50}
"""
)


def read(text: str) -> RolloutStrategy:
    document, problems = reading.read(parse(text, "f.yaml")[0])
    assert problems == []
    assert isinstance(document, RolloutStrategy)
    return document


def test_strategy_of_the_guide() -> None:
    spec = read(GUIDE).spec
    assert [s.duration_s for s in spec.stages] == [1800, 7200]
    assert spec.stages[0].success_criteria.error_rate_threshold == 0.01
    assert (spec.spread, spec.on_missing, spec.max_silent_s, spec.candidate_ttl_s) == ("global", "hold", 600, None)
    assert read(GUIDE).model_dump(exclude_unset=True)["spec"]["stages"][0]["duration"] == "30m", "as it was written"


def test_extensions_to_the_guide() -> None:
    spec = read(OURS).spec
    assert spec.stages[0].regions == ["eu"]
    assert spec.candidate_ttl_s == 5400
    assert spec.windows[0].end == "17:00"


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("{stages: []}", "at least 1 item"),
        ("{stages: [{name: a, percentage: 0}]}", "greater than 0"),
        ("{stages: [{name: a, percentage: 101}]}", "less than or equal to 100"),
        ("{stages: [{name: a}]}", "either a percentage or regions"),
        ("{stages: [{name: a, percentage: 5, regions: [eu]}]}", "either a percentage or regions"),
        (
            "{stages: [{name: a, percentage: 5}, {name: b, percentage: 5}]}",
            "b has 5 %, which is not more than the stage before",
        ),
        ("{stages: [{name: a, percentage: 5}, {name: a, percentage: 6}]}", "a is defined twice"),
        ("{stages: [{name: a, regions: [eu]}, {name: b, regions: [eu]}]}", "region eu is in two stages"),
        ("{stages: [{name: a, percentage: 5, duration: soon}]}", "'soon' is not a duration"),
        ("{stages: [{name: a, percentage: 5}], failure_policy: {action: explode}}", "'rollback' or 'pause'"),
        (
            "{stages: [{name: a, percentage: 5, success_criteria: {error_rate_threshold: 2}}]}",
            "less than or equal to 1",
        ),
        ("{stages: [{name: a, percentage: 5}], windows: [{start: '25:00'}]}", "is not of the form"),
        ("{stages: [{name: a, percentage: 5}], nonsense: 1}", "unknown key"),
    ],
)
def test_invalid_strategies_are_refused(spec: str, reason: str) -> None:
    _, problems = reading.read(parse(HEAD.replace("spec:\n", f"spec: {spec}\n"), "f.yaml")[0])
    assert any(reason in str(p) for p in problems), [str(p) for p in problems]


def test_candidate_ttl_has_a_minimum() -> None:
    _, (problem,) = reading.read(parse(OURS.replace("1h30m", "5s"), "f.yaml")[0])
    assert "at least 60s" in problem.reason
    _, (unreadable,) = reading.read(parse(OURS.replace("1h30m", "soon"), "f.yaml")[0])
    assert "candidate_ttl" in str(unreadable)
    assert read(OURS).key == "canary"
