"""What a change would do, before anything changes: to which agents, and from which config to which."""

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
from relay.control.documents.checks import Checks
from relay.control.documents.proposal import Proposal, propose
from relay.control.documents.reading import read
from relay.control.fleet.agents import Agent
from relay.control.fleet.fleet import Fleet
from relay.control.fleet.package_status import MOST_NAMED
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

_PREFIX = 12
Hashes = tuple[bytes, bytes]


@dataclass(slots=True)
class _Pair:
    """Agents that would go from one config to another."""

    before: Decision
    after: Decision
    agents: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Known:
    """Agents of one decision before and one after."""

    pair: _Pair
    after: Decision
    """What of it differs."""
    assignments: frozenset[str]
    number: int = 0


class _Decider:
    """The decisions of a region before and after: made once for agents that cannot be told apart."""

    def __init__(self, before: Evaluator, after: Evaluator) -> None:
        self._evaluators = before, after
        self._keys = before.keys | after.keys
        self._named = {*before.agent_ids, *after.agent_ids}
        self._splits = before.splits or after.splits
        self._made: dict[object, tuple[Decision, Decision]] = {}

    def decide(self, agent: Agent) -> tuple[Decision, Decision]:
        """(as declared, as it would be) for one agent."""
        if self._splits or agent.agent_id in self._named:
            return self._decide(agent)
        key = agent.profile, agent.config, agent.packages, agent.capabilities, bool(agent.agent_id)
        made = self._made.get(key)
        if made is None:
            made = self._decide(agent)
            if agent.profile.tells(self._keys):
                self._made[key] = made
        return made

    def _decide(self, agent: Agent) -> tuple[Decision, Decision]:
        takes_config, takes_packages = agent.accepts(CONFIG), agent.accepts(PACKAGES)
        if not agent.agent_id or not (takes_config or takes_packages):
            return NOTHING, NOTHING
        packages = agent.packages
        failures = (*agent.config.failed, *(packages.failed if packages is not None else ()))
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
    """What a proposal would change of agents."""

    pairs: dict[tuple[Hashes, Hashes], _Pair] = field(default_factory=dict)
    """By what differs."""
    known: dict[object, _Known] = field(default_factory=dict)
    """By the whole of both decisions."""
    by_region: Counter[str] = field(default_factory=Counter)
    orphans: list[str] = field(default_factory=list)
    needs: dict[tuple[bytes, Hashes], tuple[Decision, list[str]]] = field(default_factory=dict)
    """(digest of a list of components, what is given) → what that is, and the agents that have the one and get the other."""

    def add(self, agent: Agent, old: Decision, new: Decision) -> None:
        """Count one agent."""
        if old.hashes == new.hashes:
            return
        name = agent.agent_id
        self.by_region[agent.profile.region] += 1
        whole = old.hashes, new.hashes, old.assignments, new.assignments
        known = self.known.get(whole)
        if known is None:
            before, after = _changed(old, new)
            pair = self.pairs.setdefault((before.hashes, after.hashes), _Pair(before, after))
            known = self.known[whole] = _Known(pair, after, frozenset((*before.assignments, *after.assignments)))
        known.number += 1
        known.pair.agents.append(name)
        if new == NOTHING:
            self.orphans.append(name)
        elif agent.components_digest:
            after = known.after
            self.needs.setdefault((agent.components_digest, after.hashes), (after, []))[1].append(name)

    @property
    def by_assignment(self) -> Counter[str]:
        """Assignment → agents that would get, or lose, something of it."""
        found: Counter[str] = Counter()
        for known in self.known.values():
            found.update(dict.fromkeys(known.assignments, known.number))
        return found


class Diffs:
    """Compares the policy as it is declared with one that is proposed, when all rollouts were over.

    What goes through all agents runs in a thread: of a million it takes seconds, and nodes are answered meanwhile.
    """

    def __init__(self, ledger: Ledger, checks: Checks, terms: Terms, fleet: Fleet, *, clock: Clock) -> None:
        self._ledger = ledger
        self._checks = checks
        self._terms = terms
        self._fleet = fleet
        self._clock = clock

    async def diff(self, texts: Iterable[tuple[str, str]]) -> dict[str, Any]:
        """Compare; nothing changes. Of many agents the first `MOST_NAMED` are named.

        Raises:
            Refused: the documents are not valid.
        """
        proposal, seen = await asyncio.to_thread(self._compare, self._ledger.state, list(texts))
        lists = {digest: await self._fleet.bodies.components(digest) for digest in {digest for digest, _ in seen.needs}}
        return await asyncio.to_thread(_answer, proposal, seen, lists)

    def _compare(self, state: State, texts: list[tuple[str, str]]) -> tuple[Proposal, _Comparison]:
        proposal = propose(state, read(texts), self._checks)
        if proposal.problems:
            raise Refused(proposal.problems)
        seen = _Comparison()
        for agent, old, new in self._decided(state, proposal.after):
            seen.add(agent, old, new)
        return proposal, seen

    async def orphans(self, kind: str, key: str) -> dict[str, Any]:
        """Agents that would match nothing any more without a document: `{agents, names}`, the first of them named.

        Raises:
            NotFound: there is none of that name.
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
        return {"agents": len(names), "names": nsmallest(MOST_NAMED, names)}

    def _decided(self, before: State, catalog: Catalog) -> Iterator[tuple[Agent, Decision, Decision]]:
        """Each agent with its decision as declared, and as it would be by another catalog."""
        after = revise(before, catalog, self._terms, by="", now_ms=self._clock.unix_ms()).state
        deciders: dict[str, _Decider] = {}
        for agent in self._fleet.census.shown():
            region = agent.profile.region
            if region not in deciders:
                deciders[region] = _Decider(*(Evaluator(build(aimed(state, region))) for state in (before, after)))
            yield agent, *deciders[region].decide(agent)


def _answer(proposal: Proposal, seen: _Comparison, lists: Mapping[bytes, pb.AvailableComponents]) -> dict[str, Any]:
    mask = Mask()
    lacking = list(_lacking(seen, lists))
    named = ({"agent": name, "components": components} for names, components in lacking for name in names)
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
        "agents_changed": sum(len(pair.agents) for pair in seen.pairs.values()),
        "by_region": dict(seen.by_region),
        "by_assignment": dict(seen.by_assignment),
        "diffs": [_view(pair, mask) for pair in sorted(seen.pairs.values(), key=lambda p: -len(p.agents))],
        "conflicts": [str(problem) for problem in proposal.conflicts],
        "orphans": nsmallest(MOST_NAMED, seen.orphans),
        "orphans_total": len(seen.orphans),
        "missing_components": list(islice(named, MOST_NAMED)),
        "missing_components_total": sum(len(names) for names, _ in lacking),
        "warnings": [f"{a.kind}/{a.name}: {warning}" for a in proposal.applied for warning in a.warnings],
    }


def _lacking(seen: _Comparison, lists: Mapping[bytes, pb.AvailableComponents]) -> Iterator[tuple[list[str], list[str]]]:
    """(agents, components that they would need and did not name among those that they have)."""
    for (digest, _), (decision, names) in seen.needs.items():
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
        "names": nsmallest(MOST_NAMED, pair.agents),
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
