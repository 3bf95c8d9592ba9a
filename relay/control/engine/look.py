"""What has become of a rollout among the agents that are known: counted, judged by nobody yet."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection
from typing import NamedTuple

from relay.aio.clock import Clock
from relay.control.engine.tally import MOST_TROUBLED, Tally
from relay.control.fleet.census import Census
from relay.control.fleet.nodes import NodeState
from relay.control.fleet.targets import Targets
from relay.control.ledger.state import State
from relay.control.regions.publisher import Publisher
from relay.control.rollouts.contents import Contents
from relay.control.rollouts.counts import Goals, Look, RegionView, Trouble, Troubled
from relay.control.rollouts.revision import GlobalPackages
from relay.control.rollouts.rollout import Rollout

_FRESH = 3
"""A look is good for so many times as long as it took: however often people ask, looking takes a quarter of the time."""

_LEAST_S = 1e-6
"""What a look takes at least: a clock may not have moved."""


class _Kept(NamedTuple):
    """A look that was taken."""

    look: Look
    position: object
    """Where the rollout was then."""
    at: float
    took_s: float


def position(rollout: Rollout) -> object:
    """Equal for two forms of a rollout between which no step lies."""
    return rollout.state, rollout.stage, rollout.stage_started_ms, rollout.thresholds


class Survey:
    """Reads off the fleet what rollouts have to know."""

    def __init__(self, census: Census, targets: Targets, publisher: Publisher, *, clock: Clock) -> None:
        self._census = census
        self._targets = targets
        self._publisher = publisher
        self._clock = clock
        self._kept: dict[str, _Kept] = {}

    def last_look(self, rollout: Rollout, state: State, within: float = _FRESH) -> Look:
        """As `look`; what was seen a moment ago will do, where looking takes long.

        Args:
            within: how long ago at most, as a multiple of the time that the look took.
        """
        kept = self._kept.get(rollout.name)
        now = self._clock.monotonic()
        if (
            kept is not None
            and kept.position == position(rollout)
            and now - kept.at < within * max(kept.took_s, _LEAST_S)
        ):
            return kept.look
        return self.look(rollout, state)

    def look(self, rollout: Rollout, state: State) -> Look:
        """What is known now of a rollout.

        Args:
            state: what is in force.
        """
        began = self._clock.monotonic()
        made = Contents(rollout, state.pinned)
        # What is known of the nodes first: agents that are counted later are not older than that.
        nodes = list(self._census.nodes.values())
        heard_at = {node.key: node.status_at for node in nodes}
        views = {region: self._region_view(region, rollout, made) for region in {node.region for node in nodes}}
        tally = Tally(self._census, rollout, state, now_ms=self._clock.unix_ms())
        for group in self._targets.groups(rollout, state):
            tally.add(group)
        goals = Goals(tally.regions, lambda: self._targets.each(rollout, state))
        regions = {
            region: dataclasses.replace(views.get(region) or RegionView(connected=False), counts=total)
            for region, total in tally.counts().items()
            if total.targets or total.holding
        }
        waited_for = [node for region in regions for node in self.nodes_of(region)]
        heard = tuple(heard_at.get(node.key, -math.inf) for node in waited_for)
        look = Look(regions, goals, tally.troubled, heard)
        at = self._clock.monotonic()
        self._kept[rollout.name] = _Kept(look, position(rollout), at, at - began)
        return look

    def forget_others(self, names: Collection[str]) -> None:
        """Only these rollouts are looked at any more."""
        self._kept = {name: kept for name, kept in list(self._kept.items()) if name in names}

    def failed(self, rollout: Rollout, state: State) -> list[Troubled]:
        """Agents that could not apply the candidate of a rollout, over or not; some of them where there are many.

        Args:
            state: what is in force.
        """
        kind, made = rollout.candidate.kind, Contents(rollout, state.pinned)
        found: list[Troubled] = []
        for agent in list(self._census.agents.values()):
            for failure in agent.offering(kind).failed:
                given = made.candidate(agent.profile.region, agent.facts)
                if (failure.slot, failure.content_hash) == given and len(found) < MOST_TROUBLED:
                    found.append(Troubled(agent.agent_id, agent.profile.region, Trouble.FAILED, failure.error_message))
        return found

    def nodes_of(self, region: str) -> list[NodeState]:
        """Those of a region that are waited for."""
        nodes = list(self._census.nodes.values())
        return [n for n in nodes if n.region == region and (n.agents or n.connected) and not self._census.is_gone(n)]

    def yet_to_fetch(self, rollout: Rollout, seen: Look, state: State) -> str:
        """What stands in the way of a rollout that begins when its regions have the files; empty for nothing."""
        candidate = rollout.candidate
        if not isinstance(candidate, GlobalPackages) or not candidate.prefetch or any(rollout.thresholds.values()):
            return ""
        wanted = {f.sha256 for p in state.pinned.packages(candidate) for f in p.files}
        for node in list(self._census.nodes.values()):
            missing = len(wanted - node.blobs) if node.connected and node.region in seen.goals.regions else 0
            if missing:
                return f"region {node.region} has not fetched {missing} of the {len(wanted)} files"
        return ""

    def _region_view(self, region: str, rollout: Rollout, made: Contents) -> RegionView:
        """What is known of a region, but for what its agents come to."""
        nodes = self.nodes_of(region)
        unheard = [n for n in nodes if not self._census.is_heard(n)]
        resource = f"{rollout.candidate.kind}/{rollout.assignment}"
        refused = [r["reason"] for n in nodes for r in n.refusals if r["name"] in (resource, "policy")]
        if not made.renders(region):
            refused.append("its values cannot be resolved there")
        return RegionView(
            connected=not unheard,
            catching_up=bool(unheard) and all(n.connected and not n.verified for n in unheard),
            current=all(self._has_taken(n, rollout.assignment) for n in nodes),
            halted="; ".join(why for n in nodes if (why := n.halted.get(rollout.name)) is not None),
            refused="; ".join(dict.fromkeys(refused)),
        )

    def _has_taken(self, node: NodeState, name: str) -> bool:
        """Whether a node has what is in force of an assignment: not where it refused the policy, or holds a newer one."""
        if node.ahead is not None:
            return False
        sender = node.sender
        if sender is None:
            return True  # it cannot be heard, which is counted elsewhere
        return self._publisher.has(node.region, sender.acked, name) and not sender.refused
