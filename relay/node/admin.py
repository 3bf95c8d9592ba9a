"""A node's HTTP API for people and probes: health, readiness, metrics and agents."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from aiohttp import web

from relay import __version__
from relay.errors import NotFound
from relay.fleet.cohort import Cohorts
from relay.fleet.explain import explain_agent
from relay.fleet.facts import Proof, Trusted, facts_of
from relay.fleet.names import HOST, Names, resolve
from relay.fleet.view import agent_view, rfc3339
from relay.ids import parse_uid
from relay.node.readers import READER, may_see
from relay.node.registry import Registry
from relay.node.status import Condition
from relay.observe.metrics import CONTENT_TYPE, NodeMetrics
from relay.opamp import identity
from relay.opamp.record import Record
from relay.pb.opamp.v1 import opamp_pb2 as pb
from relay.pb.relay.v1 import link_pb2
from relay.policy.mask import Mask
from relay.transport.authentication import Rejection
from relay.transport.http import Handler, Route

_SLICE = 100
_ONLY_HOST = frozenset({HOST})


def _without_parameters(handler: Handler) -> Handler:
    async def checked(request: web.Request) -> web.StreamResponse:
        # Ignoring an unknown filter would look as if it matched everything.
        if unknown := ", ".join(sorted(request.query)):
            content = {
                "type": "about:blank",
                "status": 422,
                "detail": f"{unknown}: unknown parameter; this path takes none",
            }
            return web.json_response(content, status=422, content_type="application/problem+json")
        return await handler(request)

    return checked


def _word(degraded: list[str]) -> str:
    return "degraded" if degraded else "ok"


def _ready_status(condition: Condition) -> int:
    return 200 if condition.ready else 503


async def not_found(_: web.Request) -> web.StreamResponse:
    """There is no such path."""
    return web.Response(status=404, text="not found\n")


class Admin:
    """The handlers. All of them only read."""

    def __init__(
        self,
        registry: Registry,
        metrics: NodeMetrics,
        condition: Callable[[], Condition],
        cohorts: Cohorts,
        withheld: Callable[[], Mapping[str, str]],
        rejections: Callable[[], Iterable[Rejection]],
        *,
        region: str,
        node: str,
        trusted: Trusted,
    ) -> None:
        self._registry = registry
        self._metrics = metrics
        self._condition = condition
        self._cohorts = cohorts
        self._withheld = withheld
        self._rejections = rejections
        self._region = region
        self._node = node
        self._trusted = trusted

    def api_routes(self) -> list[Route]:
        """The routes for people."""
        api: list[Route] = [
            ("GET", "/api/v1/status", self.status),
            ("GET", "/api/v1/agents", self.agents),
            ("GET", "/api/v1/agents/{id}", self.agent),
            ("GET", "/api/v1/agents/{id}/config", self.agent_config),
            ("GET", "/api/v1/agents/{id}/explain", self.explain),
        ]
        return [(method, path, _without_parameters(handler)) for method, path, handler in api]

    def health_routes(self, *, is_open: bool = True) -> list[Route]:
        """The routes for probes.

        Args:
            is_open: False to answer without details.
        """
        if not is_open:
            return [("GET", "/health", self.health_word), ("GET", "/ready", self.ready_word)]
        return [("GET", "/health", self.health), ("GET", "/ready", self.ready)]

    def metrics_route(self) -> Route:
        """The route for Prometheus."""
        return ("GET", "/metrics", self.metrics)

    def probe_routes(self, *, is_open: bool = True) -> list[Route]:
        """The routes for probes and Prometheus. See `health_routes`."""
        return [*self.health_routes(is_open=is_open), self.metrics_route()]

    async def health(self, _: web.Request) -> web.Response:
        """200 while the process works; `degraded` lists the problems."""
        degraded = self._condition().status["degraded"]
        return web.json_response({"status": _word(degraded), "degraded": degraded})

    async def health_word(self, _: web.Request) -> web.Response:
        """Like `health`, without the problems."""
        return web.json_response({"status": _word(self._condition().status["degraded"])})

    async def ready(self, _: web.Request) -> web.Response:
        """200 if agents may be sent here, else 503 with the reason."""
        condition = self._condition()
        content = {"ready": condition.ready, "reason": condition.reason}
        return web.json_response(content, status=_ready_status(condition))

    async def ready_word(self, _: web.Request) -> web.Response:
        """Like `ready`, without the reason."""
        condition = self._condition()
        return web.json_response({"ready": condition.ready}, status=_ready_status(condition))

    async def metrics(self, _: web.Request) -> web.Response:
        """Prometheus text format."""
        return web.Response(body=self._metrics.expose(), headers={"Content-Type": CONTENT_TYPE})

    async def status(self, _: web.Request) -> web.Response:
        """The node's own state."""
        condition = self._condition()
        rejections = [
            {"at": rfc3339(r.at_unix_ms), "remote": r.remote, "reason": r.reason.value} for r in self._rejections()
        ]
        return web.json_response(
            {"version": __version__, "ready": condition.ready, **condition.status, "refused_callers": rejections}
        )

    async def agents(self, request: web.Request) -> web.StreamResponse:
        """All agents as a JSON list, written in slices so that the node keeps answering agents."""
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        part, separator = "[", ""
        for i, record in enumerate(self._registry):
            view = self._view(record)
            if may_see(request, view["labels"]):
                part += separator + json.dumps(view)
                separator = ",\n"
            if i % _SLICE == _SLICE - 1:
                await response.write(part.encode())
                part = ""
                await asyncio.sleep(0)
        await response.write((part + "]\n").encode())
        await response.write_eof()
        return response

    async def agent(self, request: web.Request) -> web.Response:
        """One agent, by instance_uid or agent id."""
        return web.json_response(self._view(await self._find(request)))

    async def agent_config(self, request: web.Request) -> web.Response:
        """An agent's reported effective config, by slot."""
        record = await self._find(request)
        effective_config = self._registry.effective_config(record.effective_config_digest)
        if effective_config is None:
            raise NotFound(f"{record.agent_id} has not reported an effective config")
        config = pb.EffectiveConfig.FromString(effective_config).config_map.config_map
        # Where people must say who they are, only the control plane shows secrets: here are no roles.
        masked = Mask() if READER in request else None
        bodies = {slot: item.body.decode("utf-8", "replace") for slot, item in sorted(config.items())}
        return web.json_response(
            {
                slot: {
                    "content_type": config[slot].content_type,
                    "body": await asyncio.to_thread(masked.text, body, config[slot].content_type)
                    if masked is not None
                    else body,
                }
                for slot, body in bodies.items()
            }
        )

    async def explain(self, request: web.Request) -> web.Response:
        """Why an agent gets its config and packages."""
        record = await self._find(request)
        state = link_pb2.AgentState.FromString(record.state())
        return web.json_response(
            explain_agent(
                self._cohorts.evaluator, state, region=self._region, trusted=self._trusted, withheld=self._withheld()
            )
        )

    async def _find(self, request: web.Request) -> Record:
        name, everybody = request.match_info["id"], READER not in request

        def is_shown(record: Record) -> bool:
            return everybody or may_see(request, self._view(record)["labels"])

        uid = parse_uid(name)
        record = self._registry.get(uid) if uid else None
        record = record if record is not None and is_shown(record) else None
        record = record or next((r for r in self._registry if r.agent_id == name and is_shown(r)), None)
        if record is not None:
            return record  # an exact id needs no search through all descriptions
        candidates = []
        for i, record in enumerate(self._registry):
            if i % _SLICE == _SLICE - 1:
                await asyncio.sleep(0)
            if not is_shown(record):
                continue
            host = identity.attributes(record.agent_description, _ONLY_HOST).get(HOST, "")
            candidates.append((Names(record.agent_id, record.instance_uid, str(host)), record))
        return resolve(name, candidates)

    def _view(self, record: Record) -> dict[str, Any]:
        state = link_pb2.AgentState.FromString(record.state())
        facts = facts_of(
            state.agent_description, state.agent_id, self._region, self._trusted, proof=Proof.of_record(record)
        )
        return agent_view(state, facts, region=self._region, node=self._node, connected=record.connected)
