"""Looks: the current state of a rollout's targets, counted but not judged."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection
from typing import NamedTuple

from relay.aio.clock import Clock
from relay.control.engine.tally import MAX_TROUBLED, Tally
from relay.control.fleet.census import Census
from relay.control.fleet.nodes import NodeState
from relay.control.fleet.targets import Targets
from relay.control.ledger.state import State
from relay.control.regions.publisher import Publisher
from relay.control.rollouts.contents import Contents
from relay.control.rollouts.counts import Look, RegionView, TargetList, Trouble, TroubledAgent
from relay.control.rollouts.revision import GlobalPackages
from relay.control.rollouts.rollout import Rollout

_REUSE_FACTOR = 3
"""A look may be reused for this multiple of its duration, so that looks take at most a quarter of the time."""

_MIN_DURATION_S = 1e-6
"""The shortest duration of a look, as the clock may not have moved."""


class _Cached(NamedTuple):
    """A look, to be reused."""

    look: Look
    position: object
    """The position of the rollout at that time."""
    at: float
    duration_s: float


def position(rollout: Rollout) -> object:
    """The position of a rollout, which changes with each step."""
    return rollout.state, rollout.stage, rollout.stage_started_ms, rollout.thresholds


class Survey:
    """Reads from the fleet what rollouts need to know."""

    def __init__(self, census: Census, targets: Targets, publisher: Publisher, *, clock: Clock) -> None:
        self._census = census
        self._targets = targets
        self._publisher = publisher
        self._clock = clock
        self._cache: dict[str, _Cached] = {}

    def last_look(self, rollout: Rollout, state: State, within: float = _REUSE_FACTOR) -> Look:
        """Like `look`, but reuse a recent look if looking takes long.

        Args:
            within: the greatest age of the look, as a multiple of its duration.
        """
        cached = self._cache.get(rollout.name)
        now = self._clock.monotonic()
        if (
            cached is not None
            and cached.position == position(rollout)
            and now - cached.at < within * max(cached.duration_s, _MIN_DURATION_S)
        ):
            return cached.look
        return self.look(rollout, state)

    def look(self, rollout: Rollout, state: State) -> Look:
        """Look at the targets of a rollout.

        Args:
            state: the state of the ledger.
        """
        began = self._clock.monotonic()
        contents = Contents(rollout, state.pinned)
        # Read the nodes first, so that the agents counted later are at least as recent.
        nodes = list(self._census.nodes.values())
        heard_at = {node.key: node.status_at for node in nodes}
        views = {region: self._region_view(region, rollout, contents) for region in {node.region for node in nodes}}
        tally = Tally(self._census, rollout, state, now_ms=self._clock.unix_ms())
        for group in self._targets.groups(rollout, state):
            tally.add(group)
        goals = TargetList(tally.regions, lambda: self._targets.each(rollout, state))
        regions = {
            region: dataclasses.replace(views.get(region) or RegionView(connected=False), counts=total)
            for region, total in tally.counts().items()
            if total.targets or total.holding
        }
        relevant = [node for region in regions for node in self.nodes_of(region)]
        heard = tuple(heard_at.get(node.key, -math.inf) for node in relevant)
        look = Look(regions, goals, tally.troubled, heard)
        at = self._clock.monotonic()
        self._cache[rollout.name] = _Cached(look, position(rollout), at, at - began)
        return look

    def forget_others(self, names: Collection[str]) -> None:
        """Drop the cached looks at all rollouts but these."""
        self._cache = {name: cached for name, cached in list(self._cache.items()) if name in names}

    def failed(self, rollout: Rollout, state: State) -> list[TroubledAgent]:
        """Return agents that could not apply the candidate of a rollout, at most `MAX_TROUBLED`.

        Args:
            state: the state of the ledger.
        """
        kind, contents = rollout.candidate.kind, Contents(rollout, state.pinned)
        agents: list[TroubledAgent] = []
        for agent in list(self._census.agents.values()):
            for failure in agent.offering(kind).failures:
                given = contents.candidate(agent.profile.region, agent.facts)
                if (failure.slot, failure.content_hash) == given and len(agents) < MAX_TROUBLED:
                    agents.append(
                        TroubledAgent(agent.agent_id, agent.profile.region, Trouble.FAILED, failure.error_message)
                    )
        return agents

    def nodes_of(self, region: str) -> list[NodeState]:
        """The nodes of a region that matter: those with agents or a link, unless they are gone."""
        nodes = list(self._census.nodes.values())
        return [n for n in nodes if n.region == region and (n.agents or n.connected) and not self._census.is_gone(n)]

    def prefetch_obstacle(self, rollout: Rollout, look: Look, state: State) -> str:
        """Why a rollout that prefetches its files cannot begin yet; empty if it can."""
        candidate = rollout.candidate
        if not isinstance(candidate, GlobalPackages) or not candidate.prefetch or any(rollout.thresholds.values()):
            return ""
        required = {f.sha256 for p in state.pinned.packages(candidate) for f in p.files}
        for node in list(self._census.nodes.values()):
            missing = len(required - node.blobs) if node.connected and node.region in look.goals.regions else 0
            if missing:
                return f"region {node.region} has not fetched {missing} of the {len(required)} files"
        return ""

    def _region_view(self, region: str, rollout: Rollout, contents: Contents) -> RegionView:
        """The state of a region, without counts."""
        nodes = self.nodes_of(region)
        silent = [n for n in nodes if not self._census.is_reporting(n)]
        resource = f"{rollout.candidate.kind}/{rollout.assignment}"
        refused = [r["reason"] for n in nodes for r in n.refusals if r["name"] in (resource, "policy")]
        if not contents.renders(region):
            refused.append("its values cannot be resolved there")
        return RegionView(
            connected=not silent,
            catching_up=bool(silent) and all(n.connected and not n.verified for n in silent),
            current=all(self._has_policy(n, rollout.assignment) for n in nodes),
            halted="; ".join(why for n in nodes if (why := n.halted.get(rollout.name)) is not None),
            refused="; ".join(dict.fromkeys(refused)),
        )

    def _has_policy(self, node: NodeState, name: str) -> bool:
        """Whether a node has the current state of an assignment. False if it refused the policy or has a newer one."""
        if node.ahead is not None:
            return False
        sender = node.sender
        if sender is None:
            return True  # it is offline, which is counted elsewhere
        return self._publisher.has(node.region, sender.acked, name) and not sender.refused
