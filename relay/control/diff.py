"""What a change would do, before anything changes: to which agents, and from which config to which."""

from __future__ import annotations

import asyncio
import difflib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from relay.aio.clock import Clock
from relay.control import views
from relay.control.documents import Documents, read
from relay.control.fleet import Agent, Fleet
from relay.control.revisions import Revisions
from relay.errors import Refused
from relay.opamp import capabilities
from relay.pb.opamp.v1 import opamp_pb2 as pb
from relay.policy import collector
from relay.policy import template as templates
from relay.policy.evaluate import Decision, Evaluator
from relay.policy.mask import Mask
from relay.policy.snapshot import build

_SLICE = 500
_PREFIX = 12


@dataclass(slots=True)
class _Pair:
    """Agents that would go from one config to another."""

    before: Decision | None
    after: Decision | None
    agents: list[str] = field(default_factory=list)


class Diffs:
    """Compares the policy as it is declared with one that is proposed, when all rollouts were over."""

    def __init__(self, documents: Documents, revisions: Revisions, fleet: Fleet, *, clock: Clock) -> None:
        self._documents = documents
        self._revisions = revisions
        self._fleet = fleet
        self._clock = clock

    async def diff(self, texts: Iterable[tuple[str, str]]) -> dict[str, Any]:
        """Compare; nothing changes.

        Raises:
            Refused: the documents are not valid.
        """
        parsed = await asyncio.to_thread(read, list(texts))
        proposal = self._documents.propose(parsed)
        if proposal.problems:
            raise Refused(proposal.problems)
        library = proposal.after
        after = self._revisions.advance(
            library.templates,
            library.assignments,
            library.variables,
            library.strategies,
            actor="",
            now_ms=self._clock.unix_ms(),
        )
        before = self._revisions.same()
        evaluators = {
            region: tuple(Evaluator(build(self._revisions.aimed(advance, region))) for advance in (before, after))
            for region in {node.region for node in self._fleet.nodes.values()}
        }
        pairs: dict[tuple[str, str], _Pair] = {}
        by_region: Counter[str] = Counter()
        by_assignment: Counter[str] = Counter()
        orphans: list[str] = []
        lacking: list[dict[str, Any]] = []
        lists: dict[bytes, pb.AvailableComponents] = {}
        for i, agent in enumerate(views.rows(self._fleet)):
            if i % _SLICE == _SLICE - 1:
                await asyncio.sleep(0)
            region = self._fleet.nodes[agent.node].region
            old, new = (self._decide(evaluator, agent) for evaluator in evaluators[region])
            if _hash(old) == _hash(new):
                continue
            name = agent.agent_id
            pairs.setdefault((_hash(old), _hash(new)), _Pair(old, new)).agents.append(name)
            by_region[region] += 1
            by_assignment.update({*(old.assignments if old else ()), *(new.assignments if new else ())})
            if new is None:
                orphans.append(name)
            elif missing := await self._missing(agent, new, lists):
                lacking.append({"agent": name, "components": missing})
        mask = Mask()
        return {
            "documents": [
                {
                    "kind": a.kind,
                    "name": a.name,
                    "action": a.action,
                    "before": mask.tree(a.before),
                    "after": mask.tree(a.after),
                }
                for a in proposal.applied
            ],
            "agents_changed": sum(len(pair.agents) for pair in pairs.values()),
            "by_region": dict(by_region),
            "by_assignment": dict(by_assignment),
            "diffs": [_view(pair, mask) for pair in sorted(pairs.values(), key=lambda p: -len(p.agents))],
            "conflicts": [str(problem) for problem in proposal.conflicts],
            "orphans": orphans,
            "missing_components": lacking,
            "warnings": [warning for a in proposal.applied for warning in a.warnings],
        }

    def _decide(self, evaluator: Evaluator, agent: Agent) -> Decision | None:
        if not agent.accepts_config or not agent.agent_id:
            return None
        failed = tuple((f.slot, f.content_hash, f.retry) for f in agent.failed)
        key = evaluator.key(self._fleet.facts_of(agent), capabilities.DECIDING, failed=failed)
        return evaluator.decide_once(key)

    async def _missing(self, agent: Agent, decision: Decision, lists: dict[bytes, pb.AvailableComponents]) -> list[str]:
        """Components that the agent would need and did not name among those that it has."""
        digest = agent.components_digest
        if not digest:
            return []
        if digest not in lists:
            lists[digest] = await self._fleet.components(digest)
        has = lists[digest].components
        return [
            f"{section}/{name}"
            for section, names in sorted(_components(decision).items())
            if section in has
            for name in sorted(names - set(has[section].sub_component_map))
        ]


def _components(decision: Decision) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for choice in decision.choices:
        for section, names in collector.components(choice.content.template.spec.config).items():
            found.setdefault(section, set()).update(names)
    return found


def _hash(decision: Decision | None) -> str:
    return decision.config_hash.hex() if decision is not None else ""


def _view(pair: _Pair, mask: Mask) -> dict[str, Any]:
    before, after = _texts(pair.before, mask), _texts(pair.after, mask)
    lines: list[str] = []
    for slot in sorted(before.keys() | after.keys()):
        name = slot or "(default)"
        lines += difflib.unified_diff(
            before.get(slot, "").splitlines(keepends=True),
            after.get(slot, "").splitlines(keepends=True),
            f"{name} (as declared)",
            f"{name} (as proposed)",
        )
    return {
        "from": _hash(pair.before)[:_PREFIX] or None,
        "to": _hash(pair.after)[:_PREFIX] or None,
        "agents": len(pair.agents),
        "names": sorted(pair.agents),
        "text": "".join(lines),
    }


def _texts(decision: Decision | None, mask: Mask) -> dict[str, str]:
    """Slot → what the agents get, without its secrets."""
    texts = {}
    for choice in decision.choices if decision is not None else ():
        template = choice.content.template
        tree = mask.tree(templates.substituted(template, choice.content.resolved))
        texts[choice.slot] = templates.as_bytes(tree, template.spec.content_type).decode()
    return texts
