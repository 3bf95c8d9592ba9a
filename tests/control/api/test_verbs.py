from __future__ import annotations

from starlette.routing import Route

from relay.control.access.roles import Verb
from relay.control.api.verbs import ANYBODY, VERBS, verb_of
from tests.conftest import Programs
from tests.control.api.client import started

PROBES = {("GET", "/health"), ("GET", "/ready")}


async def test_every_route_has_a_verb(programs: Programs) -> None:
    plane, _ = await started(programs)
    routes = {
        (method, route.path)
        for route in plane.api.routes
        if isinstance(route, Route)
        for method in (route.methods or set()) - {"HEAD"}
    }
    assert routes - VERBS.keys() - ANYBODY - PROBES == set(), "routes that nobody may use"
    assert VERBS.keys() - routes == set(), "verbs of routes that do not exist"


def test_reading_changes_nothing() -> None:
    own = {"/api/v1/tokens", "/api/v1/tokens/{token_id}", "/api/v1/diff", "/api/v1/auth/logout"}
    for (method, path), verb in VERBS.items():
        if verb is Verb.READ:
            assert method == "GET" or path in own, (method, path)


def test_rejecting_is_approving() -> None:
    template = "/api/v1/rollouts/{name}/{action}"
    assert verb_of("POST", template, "/api/v1/rollouts/a-1/reject") is Verb.APPROVE
    assert verb_of("POST", template, "/api/v1/rollouts/reject/pause") is Verb.OPERATE
    assert verb_of("POST", "/api/v1/unknown", "/api/v1/unknown") is None
