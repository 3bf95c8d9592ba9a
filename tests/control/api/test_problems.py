from __future__ import annotations

from tests.conftest import TEMPLATE, Programs, assignment
from tests.control.api.client import body, started


async def test_refusals_are_problem_json_with_all_problems(programs: Programs) -> None:
    _, client = await started(programs)
    status, answer = await client.call("POST", "/api/v1/apply", json=body(TEMPLATE, assignment("a", rate=1000)))
    assert status == 422
    assert isinstance(answer, dict)
    assert answer["problems"][0]["text"] == "f.yaml:18: spec.values.rate: 1000 is greater than the maximum, 100"
    status, answer = await client.call("POST", "/api/v1/apply", json={"sources": "x"})
    assert status == 422
    assert isinstance(answer, dict)
    assert answer["problems"][0]["path"] == "body.sources"
    metrics = (await client.call("GET", "/metrics"))[1]
    assert isinstance(metrics, str)
    assert 'opamp_control_plane_applies_total{outcome="refused"} 1.0' in metrics


async def test_method_not_allowed_is_problem_json(programs: Programs) -> None:
    _, client = await started(programs)
    status, answer = await client.call("DELETE", "/api/v1/rollouts")
    assert (status, answer) == (405, {"type": "about:blank", "status": 405, "detail": "Method Not Allowed"})
