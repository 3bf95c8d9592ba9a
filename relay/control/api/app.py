"""Builds the admin API, `/api/v1`. One module per resource."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastapi import Depends, FastAPI, Response
from fastapi.responses import JSONResponse

from relay import __version__
from relay.control.api import models
from relay.control.api.audit import add_audit_routes
from relay.control.api.auth import add_auth_routes
from relay.control.api.configs import add_config_routes
from relay.control.api.credentials import add_credential_routes
from relay.control.api.documents import add_document_routes
from relay.control.api.fleet import add_fleet_routes
from relay.control.api.guards import add_guards, only_known_parameters
from relay.control.api.logins import add_login_routes
from relay.control.api.nodes import add_node_routes
from relay.control.api.packages import add_package_routes
from relay.control.api.people import People
from relay.control.api.problems import add_problem_handlers
from relay.control.api.rollouts import add_rollout_routes
from relay.control.api.trust import add_trust_routes
from relay.control.condition import Condition
from relay.control.credentials.credentials import Credentials
from relay.control.credentials.logins import Logins
from relay.control.documents.apply import Documents
from relay.control.engine.actions import Actions
from relay.control.engine.status import Status
from relay.control.fleet.fleet import Fleet
from relay.control.identity import Identities
from relay.control.keys.trust import Trust
from relay.control.ledger.audit import Audit
from relay.control.ledger.history import History
from relay.control.ledger.ledger import Ledger
from relay.control.ledger.versions import Versions
from relay.control.packages.registry import Packages
from relay.control.regions.archive import Archive
from relay.control.review.changes import Changes
from relay.control.review.diff import Diffs
from relay.control.review.preview import Previews
from relay.observe.metrics import CONTENT_TYPE, ControlPlaneMetrics


@dataclass(frozen=True, slots=True)
class Services:
    """The parts of the control plane that the API serves."""

    ledger: Ledger
    audit: Audit
    versions: Versions
    history: History
    archive: Archive
    fleet: Fleet
    documents: Documents
    packages: Packages
    status: Status
    actions: Actions
    diffs: Diffs
    changes: Changes
    previews: Previews
    condition: Condition
    metrics: ControlPlaneMetrics
    people: People
    credentials: Credentials
    identities: Identities | None
    """None where nodes need no certificates."""
    trust: Trust
    logins: Logins | None
    """None where people do not log in at an OpenID provider."""


def build_api(services: Services, *, max_body_bytes: int, own_host: bool) -> FastAPI:
    """Build the ASGI application of the admin API.

    Args:
        own_host: whether requests must name this machine as their host.
    """
    api = FastAPI(
        title="OpAMP relay control plane",
        version=__version__,
        openapi_url="/api/v1/openapi.json",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        dependencies=[Depends(only_known_parameters)],
        generate_unique_id_function=lambda route: route.name,
    )
    api.openapi = lambda: models.describe(api)  # type: ignore[method-assign]
    add_guards(api, services.people, max_body_bytes, own_host, services.condition)
    add_problem_handlers(api)
    add_document_routes(api, services.documents, services.versions, services.diffs, services.ledger, services.metrics)
    add_fleet_routes(api, services.fleet, services.previews, services.ledger)
    add_rollout_routes(
        api, services.status, services.actions, services.changes, services.documents, services.history, services.ledger
    )
    add_audit_routes(api, services.audit, services.ledger, services.fleet)
    add_package_routes(api, services.packages, services.fleet)
    add_config_routes(api, services.archive, services.changes, services.fleet, services.ledger)
    add_credential_routes(api, services.credentials, services.ledger)
    add_node_routes(api, services.identities, services.ledger)
    add_trust_routes(api, services.trust, services.fleet, services.identities)
    has_device_flow = services.logins is not None and services.logins.has_device_flow
    add_auth_routes(api, services.people, services.ledger, has_device_flow=has_device_flow)
    add_login_routes(api, services.logins, services.credentials.sessions, services.people, services.metrics)
    _add_probes(api, services.condition, services.metrics, is_open=not services.people.required)
    return api


def build_probes(condition: Condition, metrics: ControlPlaneMetrics) -> FastAPI:
    """Build the ASGI application of the metrics port: probes and metrics, and nothing else."""
    probes = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    add_problem_handlers(probes)
    _add_probes(probes, condition, metrics, is_open=True)
    return probes


def _add_probes(api: FastAPI, condition: Condition, metrics: ControlPlaneMetrics, *, is_open: bool) -> None:
    """Add the routes for probes and Prometheus.

    Args:
        is_open: False if callers must authenticate: probes then get one word.
    """

    @api.get("/health", include_in_schema=False)
    async def health() -> dict[str, Any]:
        degraded = condition.degraded
        if not is_open:
            return {"status": "degraded" if degraded else "ok"}
        return {"status": "degraded", "degraded": degraded} if degraded else {"status": "ok"}

    @api.get("/ready", include_in_schema=False)
    async def ready() -> Response:
        reason = condition.unwritable
        return (
            JSONResponse({"ready": False, **({"reason": reason} if is_open else {})}, status_code=503)
            if reason
            else JSONResponse({"ready": True})
        )

    @api.get("/metrics", include_in_schema=False)
    async def scrape() -> Response:
        return Response(metrics.expose(), media_type=CONTENT_TYPE)
