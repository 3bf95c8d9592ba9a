"""All known nodes and agents in memory, with counts that are updated agent by agent.

A fleet may have a million agents: frequent queries must not visit all of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Iterator
from operator import attrgetter
from typing import NamedTuple

from relay.aio.clock import Clock
from relay.control.fleet.agents import Agent
from relay.control.fleet.nodes import NodeState
from relay.control.fleet.profiles import Profile
from relay.policy.selector import Matcher

_SILENT_NODE_S = 15.0
_GONE_AFTER_MS = 15 * 60 * 1000


class Cell(NamedTuple):
    """A class of agents for counting: agents of one cell are equal in all of these fields."""

    node: str
    stream: int
    profile: Profile
    connected: bool
    healthy: bool | None
    status: str

    @classmethod
    def of(cls, agent: Agent) -> Cell:
        """The cell of an agent."""
        return cls(agent.node, agent.stream, agent.profile, agent.connected, agent.healthy, agent.status)


class _Namesakes:
    """Agents with the same id. Lists show the connected ones, or the newest if none is connected.

    There may be thousands of them if an image was cloned with its id. A change visits the others only when the first
    one connects, the last one disconnects, or the one that is shown leaves.
    """

    def __init__(self, agent: Agent) -> None:
        self.agents = {agent.uid: agent}
        self._live = int(agent.connected)
        self._newest = agent
        """The one to show while none is connected."""

    def put(self, agent: Agent) -> Iterable[Agent]:
        """Add an agent that is not hidden. Returns the agents whose `hidden` must be flipped."""
        self.agents[agent.uid] = agent
        self._live += agent.connected
        if self._live:
            if agent.connected:
                return self._to_flip() if self._live == 1 else ()
            return [agent]
        if agent.age < self._newest.age:
            return [agent]
        before, self._newest = self._newest, agent
        return [before]

    def drop(self, agent: Agent) -> Iterable[Agent]:
        """Remove one of at least two agents. Returns the same as `put`."""
        del self.agents[agent.uid]
        self._live -= agent.connected
        if self._live or not (agent.connected or agent is self._newest):
            return ()
        self._newest = max(self.agents.values(), key=attrgetter("age"))
        return self._to_flip()

    def _to_flip(self) -> list[Agent]:
        live = self._live > 0
        return [a for a in self.agents.values() if a.hidden is (a.connected if live else a is self._newest)]


class Census:
    """All nodes and agents. `agents` and `nodes` are read-only for others; `put`, `drop` and `node` change them."""

    def __init__(self, *, clock: Clock) -> None:
        self._clock = clock
        self.agents: dict[bytes, Agent] = {}
        self.nodes: dict[str, NodeState] = {}
        self.cells: Counter[Cell] = Counter()
        """Number of agents per cell, without hidden ones."""
        self._named: dict[str, Agent] = {}
        """Agent id → an agent with this id."""
        self.duplicates: dict[str, _Namesakes] = {}
        """Agent id → its agents, for ids that several agents have."""
        self._by_profile: dict[Profile, set[bytes]] = {}

    def __len__(self) -> int:
        return len(self.agents)

    # ---- changes

    def node(self, region: str, name: str) -> NodeState:
        """Return a node; creates it if needed."""
        key = f"{region}/{name}"
        if key not in self.nodes:
            self.nodes[key] = NodeState(region, name, heard_at=self._clock.monotonic())
        return self.nodes[key]

    def put(self, agent: Agent) -> None:
        """Add or replace an agent. Its node must exist."""
        self.drop(agent.uid)
        agent.hidden = False
        node = self.nodes[agent.node]
        self.agents[agent.uid] = agent
        node.agents.add(agent.uid)
        if not agent.forgotten:
            node.shards.replace(agent.uid, 0, agent.digest)
        self._by_profile.setdefault(agent.profile, set()).add(agent.uid)
        self._count(agent, 1)
        name = agent.agent_id
        if not name or self._named.setdefault(name, agent) is agent:
            return
        if name not in self.duplicates:
            self.duplicates[name] = _Namesakes(self._named[name])
        self._flip(self.duplicates[name].put(agent))

    def drop(self, uid: bytes) -> Agent | None:
        """Remove an agent and return it."""
        old = self.agents.pop(uid, None)
        if old is None:
            return None
        node = self.nodes[old.node]
        node.agents.discard(uid)
        if not old.forgotten:
            node.shards.replace(uid, old.digest, 0)
        self._remove_from_profile(old)
        if not old.hidden:
            self._count(old, -1)
        name = old.agent_id
        if name in self.duplicates:
            namesakes = self.duplicates[name]
            self._flip(namesakes.drop(old))
            self._named[name] = next(iter(namesakes.agents.values()))
            if len(namesakes.agents) == 1:
                del self.duplicates[name]
        elif self._named.get(name) is old:
            del self._named[name]
        return old

    def forget_node(self, node: NodeState) -> None:
        """Remove a node and all its agents."""
        for uid in list(node.agents):
            self.drop(uid)
        del self.nodes[node.key]

    def _remove_from_profile(self, agent: Agent) -> None:
        uids = self._by_profile[agent.profile]
        uids.discard(agent.uid)
        if not uids:
            del self._by_profile[agent.profile]

    def _count(self, agent: Agent, by: int) -> None:
        cell = Cell.of(agent)
        self.cells[cell] += by
        if not self.cells[cell]:
            del self.cells[cell]

    def _flip(self, changed: Iterable[Agent]) -> None:
        """Flip `hidden` of these agents."""
        for agent in changed:
            agent.hidden = not agent.hidden
            self._count(agent, -1 if agent.hidden else 1)

    # ---- lookups

    def by_id(self, agent_id: str) -> tuple[Agent, ...]:
        """All agents with this agent id."""
        if agent_id in self.duplicates:
            return tuple(self.duplicates[agent_id].agents.values())
        return (self._named[agent_id],) if agent_id in self._named else ()

    def visible(self) -> Iterator[Agent]:
        """The agents that lists show: of several with one id the connected ones, or the newest if none is connected."""
        return (agent for agent in list(self.agents.values()) if not agent.hidden)

    def partition(self, matcher: Matcher) -> Iterator[tuple[str, int, Iterator[Agent]]]:
        """Partition all agents into few groups of (region, outcomes of the matcher's terms, agents)."""
        named = {agent.uid: agent for name in matcher.agent_ids for agent in self.by_id(name)}
        single: dict[tuple[str, int], list[Agent]] = {}
        for agent in named.values():
            single.setdefault((agent.profile.region, matcher.vector(agent.facts)), []).append(agent)
        for profile, uids in list(self._by_profile.items()):
            if profile.tells(matcher.keys):
                yield profile.region, matcher.vector(profile.shared()), self._agents(profile, uids, named)
            else:
                for agent in self._agents(profile, uids, named):
                    single.setdefault((profile.region, matcher.vector(agent.facts)), []).append(agent)
        for (region, vector), agents in single.items():
            yield region, vector, iter(agents)

    def vectors(self, matcher: Matcher) -> dict[int, str]:
        """Every vector that occurs in the fleet → the id of one agent with it."""
        examples: dict[int, str] = {}
        for _, vector, agents in self.partition(matcher):
            if vector not in examples and (agent := next(agents, None)) is not None:
                examples[vector] = agent.agent_id
        return examples

    def _agents(self, profile: Profile, uids: Iterable[bytes], excluded: Container[bytes]) -> Iterator[Agent]:
        # Agents may come and go while another thread iterates.
        for uid in list(uids):
            agent = self.agents.get(uid)
            if agent is not None and agent.profile is profile and uid not in excluded:
                yield agent

    def live_regions(self) -> set[str]:
        """Regions that have agents or a connected node."""
        return {node.region for node in list(self.nodes.values()) if node.agents or node.connected}

    # ---- current state of nodes and agents

    def policy_age_s(self, node: NodeState) -> float | None:
        """The age of a connected node's policy; None if it is unknown."""
        if node.policy_age_s is None or not node.connected:
            return None
        return node.policy_age_s + self._clock.monotonic() - node.status_at

    def is_reporting(self, node: NodeState) -> bool:
        """Whether a node reports, did so lately, and has the same agents as this census.

        A node sends its status every few seconds. Both ends are compared after its Report stream comes up.
        """
        fresh = self._clock.monotonic() - node.status_at < _SILENT_NODE_S
        return node.reporting > 0 and node.verified and fresh

    def is_gone(self, node: NodeState) -> bool:
        """Whether nobody needs to wait for a node: it said goodbye, or it is long away and its region has another."""
        if node.connected:
            return False
        away_ms = self._clock.unix_ms() - node.last_seen_ms
        return node.departed or (
            away_ms >= _GONE_AFTER_MS
            and any(other.connected for other in list(self.nodes.values()) if other.region == node.region)
        )

    def connected(self, one: Agent | Cell) -> bool | None:
        """Whether an agent, or the agents of a cell, are connected; None if unknown.

        It is unknown while the link of their node is down, and then until the node reports them or both ends are compared.
        """
        node = self.nodes.get(one.node)  # None if it was forgotten meanwhile
        if node is None or not node.reporting or node.unstored is not None:
            return None
        return one.connected if node.verified or one.stream == node.streams else None

    def healthy(self, one: Agent | Cell) -> bool | None:
        """Its health; None if it reported none or is not connected."""
        return one.healthy if self.connected(one) else None
