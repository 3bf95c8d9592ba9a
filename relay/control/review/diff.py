"""What a change would do, before anything changes: to which agents, and from which config to which."""

from __future__ import annotations

import asyncio
import difflib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from relay.aio.clock import Clock
from relay.control.documents.checks import Checks
from relay.control.documents.proposal import propose
from relay.control.documents.reading import read
from relay.control.fleet import query
from relay.control.fleet.agents import Agent
from relay.control.fleet.fleet import Fleet
from relay.control.ledger.begin import Terms
from relay.control.ledger.catalog import Catalog, find
from relay.control.ledger.ledger import Ledger
from relay.control.ledger.revise import revise
from relay.control.ledger.state import State
from relay.control.regions.resources import aimed
from relay.errors import Refused
from relay.opamp import capabilities
from relay.pb.opamp.v1 import opamp_pb2 as pb
from relay.policy import collector
from relay.policy.evaluate import NOTHING, Choice, Decision, Evaluator, applied_of
from relay.policy.mask import Mask
from relay.policy.published import CONFIG, PACKAGES
from relay.policy.snapshot import build

_SLICE = 500
_PREFIX = 12
Hashes = tuple[bytes, bytes]


@dataclass(slots=True)
class _Pair:
    """Agents that would go from one config to another."""

    before: Decision
    after: Decision
    agents: list[str] = field(default_factory=list)


class Diffs:
    """Compares the policy as it is declared with one that is proposed, when all rollouts were over."""

    def __init__(self, ledger: Ledger, checks: Checks, terms: Terms, fleet: Fleet, *, clock: Clock) -> None:
        self._ledger = ledger
        self._checks = checks
        self._terms = terms
        self._fleet = fleet
        self._clock = clock

    async def diff(self, texts: Iterable[tuple[str, str]]) -> dict[str, Any]:
        """Compare; nothing changes.

        Raises:
            Refused: the documents are not valid.
        """
        parsed = await asyncio.to_thread(read, list(texts))
        proposal = propose(self._ledger.state, parsed, self._checks)
        if proposal.problems:
            raise Refused(proposal.problems)
        evaluators = self._evaluators(proposal.after)
        pairs: dict[tuple[Hashes, Hashes], _Pair] = {}
        by_region: Counter[str] = Counter()
        by_assignment: Counter[str] = Counter()
        orphans: list[str] = []
        lacking: list[dict[str, Any]] = []
        lists: dict[bytes, pb.AvailableComponents] = {}
        for i, agent in enumerate(query.rows(self._fleet)):
            if i % _SLICE == _SLICE - 1:
                await asyncio.sleep(0)
            region = self._fleet.nodes[agent.node].region
            old, new = (self._decide(evaluator, agent) for evaluator in evaluators[region])
            if old.hashes == new.hashes:
                continue
            name, is_orphan = agent.agent_id, new == NOTHING
            old, new = _changed(old, new)
            pairs.setdefault((old.hashes, new.hashes), _Pair(old, new)).agents.append(name)
            by_region[region] += 1
            by_assignment.update({*old.assignments, *new.assignments})
            if is_orphan:
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
            "warnings": [f"{a.kind}/{a.name}: {warning}" for a in proposal.applied for warning in a.warnings],
        }

    async def orphans(self, kind: str, key: str) -> dict[str, Any]:
        """Agents that would match nothing any more without a document: `{agents, names}`.

        Raises:
            NotFound: there is none of that name.
        """
        catalog = self._ledger.state.catalog
        find(catalog, kind, key)
        catalog = catalog.without(kind, key)
        names = []
        if kind in (CONFIG, PACKAGES):
            evaluators = self._evaluators(catalog)
            for i, agent in enumerate(query.rows(self._fleet)):
                if i % _SLICE == _SLICE - 1:
                    await asyncio.sleep(0)
                pair = evaluators[self._fleet.nodes[agent.node].region]
                old, new = (self._decide(evaluator, agent) for evaluator in pair)
                had, has = (d.packages if kind == PACKAGES else d.choices for d in (old, new))
                if had and not has:
                    names.append(agent.agent_id)
        return {"agents": len(names), "names": sorted(names)}

    def _evaluators(self, catalog: Catalog) -> dict[str, tuple[Evaluator, Evaluator]]:
        """Region → (as declared, as it would be)."""
        before = self._ledger.state
        after = revise(before, catalog, self._terms, by="", now_ms=self._clock.unix_ms()).state

        def made(state: State, region: str) -> Evaluator:
            return Evaluator(build(aimed(state, region)))

        regions = {node.region for node in self._fleet.nodes.values()}
        return {region: (made(before, region), made(after, region)) for region in regions}

    def _decide(self, evaluator: Evaluator, agent: Agent) -> Decision:
        takes_config, takes_packages = agent.accepts(CONFIG), agent.accepts(PACKAGES)
        if not agent.agent_id or not (takes_config or takes_packages):
            return NOTHING
        failures = (*agent.config.failed, *(agent.packages.failed if agent.packages is not None else ()))
        failed = tuple(f.attempt for f in failures)
        applied = applied_of(agent.config.applied, agent.packages.applied if agent.packages is not None else ())
        key = evaluator.key(self._fleet.facts_of(agent), capabilities.DECIDING, failed=failed, applied=applied)
        decision = evaluator.decide_once(key)
        if not takes_config:
            return Decision((), NOTHING.config_hash, decision.packages, decision.packages_hash)
        return decision if takes_packages else Decision(decision.choices, decision.config_hash)

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
        for section, names in collector.components(choice.config.template.spec.config or {}).items():
            found.setdefault(section, set()).update(names)
    return found


def _changed(old: Decision, new: Decision) -> tuple[Decision, Decision]:
    """The parts of two decisions that differ: of slots those that hold something else, packages only where they do."""
    kept = {_given(c) for c in old.choices} & {_given(c) for c in new.choices}
    found = []
    for decision in (old, new):
        choices = tuple(c for c in decision.choices if _given(c) not in kept)
        same_config, same_packages = old.config_hash == new.config_hash, old.packages_hash == new.packages_hash
        found.append(
            Decision(
                choices,
                NOTHING.config_hash if same_config else decision.config_hash,
                None if same_packages else decision.packages,
                b"" if same_packages else decision.packages_hash,
            )
        )
    return found[0], found[1]


def _given(choice: Choice) -> tuple[str, bytes, str]:
    """What a slot holds, and the assignment that gives it."""
    return choice.slot, choice.content_hash, choice.assignment.published.name


def _hash(decision: Decision) -> str | None:
    """The first digits of the hashes that agents see: of the config, of the packages."""
    shown = [h.hex()[:_PREFIX] for h in decision.hashes if h]
    return "+".join(shown) or None


def _view(pair: _Pair, mask: Mask) -> dict[str, Any]:
    before, after = _texts(pair.before, mask), _texts(pair.after, mask)
    lines: list[str] = []
    for name in sorted(before.keys() | after.keys()):
        lines += difflib.unified_diff(
            before.get(name, "").splitlines(keepends=True),
            after.get(name, "").splitlines(keepends=True),
            f"{name} (as declared)",
            f"{name} (as proposed)",
        )
    return {
        "from": _hash(pair.before),
        "to": _hash(pair.after),
        "agents": len(pair.agents),
        "names": sorted(pair.agents),
        "text": "".join(lines),
    }


def _texts(decision: Decision, mask: Mask) -> dict[str, str]:
    """Slot → what the agents get, without its secrets."""
    texts = {}
    for choice in decision.choices:
        texts[choice.slot or "(default)"] = mask.config(choice.config.template, choice.config.resolved)
    if decision.packages is not None and decision.packages.files is not None:
        files = decision.packages.files.files
        texts["packages"] = "".join(f"{p.name}: {p.version} (sha256 {f.sha256[:_PREFIX]})\n" for p, f in files)
    return texts
