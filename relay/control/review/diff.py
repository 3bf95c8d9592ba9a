"""Preview of a change: which agents it would affect, and how their configs would change."""

from __future__ import annotations

import asyncio
import difflib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from heapq import nsmallest
from itertools import islice
from typing import Any

from relay.aio.clock import Clock
from relay.control.access.actor import ANONYMOUS, Actor
from relay.control.documents.checks import Checks
from relay.control.documents.proposal import Proposal, propose
from relay.control.documents.reading import read
from relay.control.fleet.agents import Agent
from relay.control.fleet.fleet import Fleet
from relay.control.fleet.package_status import MAX_NAMED
from relay.control.ledger.begin import Terms
from relay.control.ledger.catalog import Catalog, find
from relay.control.ledger.ledger import Ledger
from relay.control.ledger.permission import check_documents
from relay.control.ledger.revise import revise
from relay.control.ledger.state import State
from relay.control.regions.resources import declared_policy
from relay.errors import Refused
from relay.opamp import capabilities
from relay.pb.opamp.v1 import opamp_pb2 as pb
from relay.policy import collector
from relay.policy.evaluate import NOTHING, Choice, Decision, Evaluator, applied_of
from relay.policy.mask import Mask
from relay.policy.published import CONFIG, PACKAGES
from relay.policy.snapshot import build

_PREFIX = 12
Hashes = tuple[bytes, bytes]


@dataclass(slots=True)
class _Pair:
    """Agents with the same change of config."""

    before: Decision
    after: Decision
    agents: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Group:
    """Agents with the same two decisions."""

    pair: _Pair
    after: Decision
    """The parts of the new decision that differ."""
    assignments: frozenset[str]
    number: int = 0


class _Decider:
    """The decisions of a region before and after, made once for agents that cannot be told apart."""

    def __init__(self, before: Evaluator, after: Evaluator) -> None:
        self._evaluators = before, after
        self._keys = before.keys | after.keys
        self._named = {*before.agent_ids, *after.agent_ids}
        self._splits = before.is_partial or after.is_partial
        self._cache: dict[object, tuple[Decision, Decision]] = {}

    def decide(self, agent: Agent) -> tuple[Decision, Decision]:
        """Return (decision as declared, decision as proposed) for an agent."""
        if self._splits or agent.agent_id in self._named:
            return self._decide(agent)
        key = agent.profile, agent.config, agent.packages, agent.capabilities, bool(agent.agent_id)
        decisions = self._cache.get(key)
        if decisions is None:
            decisions = self._decide(agent)
            if agent.profile.tells(self._keys):
                self._cache[key] = decisions
        return decisions

    def _decide(self, agent: Agent) -> tuple[Decision, Decision]:
        takes_config, takes_packages = agent.accepts(CONFIG), agent.accepts(PACKAGES)
        if not agent.agent_id or not (takes_config or takes_packages):
            return NOTHING, NOTHING
        packages = agent.packages
        failures = (*agent.config.failures, *(packages.failures if packages is not None else ()))
        failed = tuple(f.attempt for f in failures)
        applied = applied_of(agent.config.applied, packages.applied if packages is not None else ())

        def one(evaluator: Evaluator) -> Decision:
            key = evaluator.key(agent.facts, capabilities.DECIDING, failed=failed, applied=applied)
            decision = evaluator.decide_once(key)
            if not takes_config:
                return Decision((), NOTHING.config_hash, decision.packages, decision.packages_hash)
            return decision if takes_packages else Decision(decision.choices, decision.config_hash)

        before, after = self._evaluators
        return one(before), one(after)


@dataclass(slots=True)
class _Comparison:
    """What a proposal would change for agents."""

    pairs: dict[tuple[Hashes, Hashes], _Pair] = field(default_factory=dict)
    """Keyed by the hashes of the parts that differ."""
    groups: dict[object, _Group] = field(default_factory=dict)
    """Keyed by both decisions as a whole."""
    by_region: Counter[str] = field(default_factory=Counter)
    orphans: list[str] = field(default_factory=list)
    needs: dict[tuple[bytes, Hashes], tuple[Decision, list[str]]] = field(default_factory=dict)
    """(digest of a component list, hashes of a decision) → the decision, and agents with that list that would get it."""

    def add(self, agent: Agent, old: Decision, new: Decision) -> None:
        """Count one agent."""
        if old.hashes == new.hashes:
            return
        name = agent.agent_id
        self.by_region[agent.profile.region] += 1
        whole = old.hashes, new.hashes, old.assignments, new.assignments
        group = self.groups.get(whole)
        if group is None:
            before, after = _changed(old, new)
            pair = self.pairs.setdefault((before.hashes, after.hashes), _Pair(before, after))
            group = self.groups[whole] = _Group(pair, after, frozenset((*before.assignments, *after.assignments)))
        group.number += 1
        group.pair.agents.append(name)
        if new == NOTHING:
            self.orphans.append(name)
        elif agent.components_digest:
            after = group.after
            self.needs.setdefault((agent.components_digest, after.hashes), (after, []))[1].append(name)

    @property
    def by_assignment(self) -> Counter[str]:
        """Assignment → number of agents for which it would change something."""
        counts: Counter[str] = Counter()
        for group in self.groups.values():
            counts.update(dict.fromkeys(group.assignments, group.number))
        return counts


class Diffs:
    """Compares the declared policy with a proposed one, as if all rollouts were complete.

    This runs in a thread: with a million agents it takes seconds, and nodes must be answered meanwhile.
    """

    def __init__(self, ledger: Ledger, checks: Checks, terms: Terms, fleet: Fleet, *, clock: Clock) -> None:
        self._ledger = ledger
        self._checks = checks
        self._terms = terms
        self._fleet = fleet
        self._clock = clock

    async def diff(self, texts: Iterable[tuple[str, str]], actor: Actor = ANONYMOUS) -> dict[str, Any]:
        """Compare without changing anything. At most `MAX_NAMED` agents are listed in each place.

        Raises:
            Refused: the documents are invalid.
            Forbidden: they are for agents outside the actor's scope.
        """
        proposal, comparison = await asyncio.to_thread(self._compare, self._ledger.state, list(texts), actor)
        lists = {
            digest: await self._fleet.bodies.components(digest) for digest in {digest for digest, _ in comparison.needs}
        }
        return await asyncio.to_thread(_answer, proposal, comparison, lists)

    def _compare(self, state: State, texts: list[tuple[str, str]], actor: Actor) -> tuple[Proposal, _Comparison]:
        parsed = read(texts)
        check_documents(actor, state, state.catalog.put(*(document for _, document in parsed)))
        proposal = propose(state, parsed, self._checks)
        if proposal.problems:
            raise Refused(proposal.problems)
        comparison = _Comparison()
        for agent, old, new in self._decided(state, proposal.after):
            comparison.add(agent, old, new)
        return proposal, comparison

    async def orphans(self, kind: str, key: str) -> dict[str, Any]:
        """Agents that would match nothing without a document: `{agents, names}`, with at most `MAX_NAMED` names.

        Raises:
            NotFound: there is no such document.
        """
        state = self._ledger.state
        find(state.catalog, kind, key)
        return await asyncio.to_thread(self._orphans, state, kind, key)

    def _orphans(self, state: State, kind: str, key: str) -> dict[str, Any]:
        names = []
        if kind in (CONFIG, PACKAGES):
            for agent, old, new in self._decided(state, state.catalog.without(kind, key)):
                had, has = (d.packages if kind == PACKAGES else d.choices for d in (old, new))
                if had and not has:
                    names.append(agent.agent_id)
        return {"agents": len(names), "names": nsmallest(MAX_NAMED, names)}

    def _decided(self, before: State, catalog: Catalog) -> Iterator[tuple[Agent, Decision, Decision]]:
        """Each agent with its decision as declared, and its decision by another catalog."""
        after = revise(before, catalog, self._terms, by="", now_ms=self._clock.unix_ms()).state
        deciders: dict[str, _Decider] = {}
        for agent in self._fleet.census.visible():
            region = agent.profile.region
            if region not in deciders:
                deciders[region] = _Decider(
                    *(Evaluator(build(declared_policy(state, region))) for state in (before, after))
                )
            yield agent, *deciders[region].decide(agent)


def _answer(
    proposal: Proposal, comparison: _Comparison, lists: Mapping[bytes, pb.AvailableComponents]
) -> dict[str, Any]:
    mask = Mask()
    missing = list(_missing(comparison, lists))
    entries = ({"agent": name, "components": components} for names, components in missing for name in names)
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
        "agents_changed": sum(len(pair.agents) for pair in comparison.pairs.values()),
        "by_region": dict(comparison.by_region),
        "by_assignment": dict(comparison.by_assignment),
        "diffs": [_view(pair, mask) for pair in sorted(comparison.pairs.values(), key=lambda p: -len(p.agents))],
        "conflicts": [str(problem) for problem in proposal.conflicts],
        "orphans": nsmallest(MAX_NAMED, comparison.orphans),
        "orphans_total": len(comparison.orphans),
        "missing_components": list(islice(entries, MAX_NAMED)),
        "missing_components_total": sum(len(names) for names, _ in missing),
        "warnings": [f"{a.kind}/{a.name}: {warning}" for a in proposal.applied for warning in a.warnings],
    }


def _missing(
    comparison: _Comparison, lists: Mapping[bytes, pb.AvailableComponents]
) -> Iterator[tuple[list[str], list[str]]]:
    """(agents, components that they would need but do not list)."""
    for (digest, _), (decision, names) in comparison.needs.items():
        has = lists[digest].components
        missing = [
            f"{section}/{name}"
            for section, needed in sorted(_components(decision).items())
            if section in has
            for name in sorted(needed - set(has[section].sub_component_map))
        ]
        if missing:
            yield names, missing


def _components(decision: Decision) -> dict[str, set[str]]:
    components: dict[str, set[str]] = {}
    for choice in decision.choices:
        for section, names in collector.components(choice.config.template.spec.config or {}).items():
            components.setdefault(section, set()).update(names)
    return components


def _changed(old: Decision, new: Decision) -> tuple[Decision, Decision]:
    """Return both decisions without what they have in common: equal slots, and packages if equal."""
    common = {_given(c) for c in old.choices} & {_given(c) for c in new.choices}
    parts = []
    for decision in (old, new):
        choices = tuple(c for c in decision.choices if _given(c) not in common)
        same_config, same_packages = old.config_hash == new.config_hash, old.packages_hash == new.packages_hash
        parts.append(
            Decision(
                choices,
                NOTHING.config_hash if same_config else decision.config_hash,
                None if same_packages else decision.packages,
                b"" if same_packages else decision.packages_hash,
            )
        )
    return parts[0], parts[1]


def _given(choice: Choice) -> tuple[str, bytes, str]:
    """The slot, its content hash and its assignment."""
    return choice.slot, choice.content_hash, choice.assignment.published.name


def _hash(decision: Decision) -> str | None:
    """The first digits of the config and package hashes that agents see."""
    hashes = [h.hex()[:_PREFIX] for h in decision.hashes if h]
    return "+".join(hashes) or None


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
        "names": nsmallest(MAX_NAMED, pair.agents),
        "text": "".join(lines),
    }


def _texts(decision: Decision, mask: Mask) -> dict[str, str]:
    """Slot → what the agents get, with secrets masked."""
    texts = {}
    for choice in decision.choices:
        texts[choice.slot or "(default)"] = mask.config(choice.config.template, choice.config.resolved)
    if decision.packages is not None and decision.packages.files is not None:
        files = decision.packages.files.files
        texts["packages"] = "".join(f"{p.name}: {p.version} (sha256 {f.sha256[:_PREFIX]})\n" for p, f in files)
    return texts
