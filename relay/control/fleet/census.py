"""Who is known: all nodes and all agents in memory, and sums over them that change with each agent.

A fleet may have a million agents: what is asked often must not look at all of them.
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
    """What is counted of agents: those of one cell are alike in all of it."""

    node: str
    stream: int
    profile: Profile
    connected: bool
    healthy: bool | None
    status: str

    @classmethod
    def of(cls, agent: Agent) -> Cell:
        """That of an agent."""
        return cls(agent.node, agent.stream, agent.profile, agent.connected, agent.healthy, agent.status)


class _Namesakes:
    """Agents of one id: of them the live ones are shown, or if none is live the newest.

    There may be thousands, where an image was cloned with its id in it: one that changes costs no look at all others, but
    where the first comes to life, and where the one that is shown goes.
    """

    def __init__(self, agent: Agent) -> None:
        self.agents = {agent.uid: agent}
        self._live = int(agent.connected)
        self._newest = agent
        """Which is shown, while none is live."""

    def put(self, agent: Agent) -> Iterable[Agent]:
        """One more, which is not hidden. Gives those that are to be hidden, or shown, from now on."""
        self.agents[agent.uid] = agent
        self._live += agent.connected
        if self._live:
            if agent.connected:
                return self._changed() if self._live == 1 else ()
            return [agent]
        if agent.age < self._newest.age:
            return [agent]
        before, self._newest = self._newest, agent
        return [before]

    def drop(self, agent: Agent) -> Iterable[Agent]:
        """One less, of at least two. As `put`."""
        del self.agents[agent.uid]
        self._live -= agent.connected
        if self._live or not (agent.connected or agent is self._newest):
            return ()
        self._newest = max(self.agents.values(), key=attrgetter("age"))
        return self._changed()

    def _changed(self) -> list[Agent]:
        live = self._live > 0
        return [a for a in self.agents.values() if a.hidden is (a.connected if live else a is self._newest)]


class Census:
    """All nodes and all agents. Others read `agents` and `nodes`, and change them by `put`, `drop` and `node`."""

    def __init__(self, *, clock: Clock) -> None:
        self._clock = clock
        self.agents: dict[bytes, Agent] = {}
        self.nodes: dict[str, NodeState] = {}
        self.cells: Counter[Cell] = Counter()
        """How many agents there are of each kind, but for those that are hidden."""
        self._named: dict[str, Agent] = {}
        """Agent id → the agent that has it, or one of them."""
        self.several: dict[str, _Namesakes] = {}
        """Agent id → the agents that have it, where several do."""
        self._alike: dict[Profile, set[bytes]] = {}

    def __len__(self) -> int:
        return len(self.agents)

    # ---- what comes and goes

    def node(self, region: str, name: str) -> NodeState:
        """A node, from now on known."""
        key = f"{region}/{name}"
        if key not in self.nodes:
            self.nodes[key] = NodeState(region, name)
        return self.nodes[key]

    def put(self, agent: Agent) -> None:
        """An agent is known as this; its node must be."""
        self.drop(agent.uid)
        agent.hidden = False
        node = self.nodes[agent.node]
        self.agents[agent.uid] = agent
        node.agents.add(agent.uid)
        if not agent.forgotten:
            node.shards.replace(agent.uid, 0, agent.digest)
        self._alike.setdefault(agent.profile, set()).add(agent.uid)
        self._count(agent, 1)
        name = agent.agent_id
        if not name or self._named.setdefault(name, agent) is agent:
            return
        if name not in self.several:
            self.several[name] = _Namesakes(self._named[name])
        self._show(self.several[name].put(agent))

    def drop(self, uid: bytes) -> Agent | None:
        """An agent is not known any more; gives it as it was."""
        old = self.agents.pop(uid, None)
        if old is None:
            return None
        node = self.nodes[old.node]
        node.agents.discard(uid)
        if not old.forgotten:
            node.shards.replace(uid, old.digest, 0)
        self._leave(old)
        if not old.hidden:
            self._count(old, -1)
        name = old.agent_id
        if name in self.several:
            namesakes = self.several[name]
            self._show(namesakes.drop(old))
            self._named[name] = next(iter(namesakes.agents.values()))
            if len(namesakes.agents) == 1:
                del self.several[name]
        elif self._named.get(name) is old:
            del self._named[name]
        return old

    def forget_node(self, node: NodeState) -> None:
        """A node and all its agents are not known any more."""
        for uid in list(node.agents):
            self.drop(uid)
        del self.nodes[node.key]

    def _leave(self, agent: Agent) -> None:
        uids = self._alike[agent.profile]
        uids.discard(agent.uid)
        if not uids:
            del self._alike[agent.profile]

    def _count(self, agent: Agent, by: int) -> None:
        cell = Cell.of(agent)
        self.cells[cell] += by
        if not self.cells[cell]:
            del self.cells[cell]

    def _show(self, changed: Iterable[Agent]) -> None:
        """These were hidden and are not any more, or the other way."""
        for agent in changed:
            agent.hidden = not agent.hidden
            self._count(agent, -1 if agent.hidden else 1)

    # ---- what there is

    def named(self, agent_id: str) -> tuple[Agent, ...]:
        """All agents of an agent id."""
        if agent_id in self.several:
            return tuple(self.several[agent_id].agents.values())
        return (self._named[agent_id],) if agent_id in self._named else ()

    def shown(self) -> Iterator[Agent]:
        """One agent a row of a list: of several that have one agent id the live ones, or if none is live the newest."""
        return (agent for agent in list(self.agents.values()) if not agent.hidden)

    def partition(self, matcher: Matcher) -> Iterator[tuple[str, int, Iterator[Agent]]]:
        """(region, outcomes of a matcher's terms, agents that have them): all agents, in few pieces."""
        named = {agent.uid: agent for name in matcher.agent_ids for agent in self.named(name)}
        single: dict[tuple[str, int], list[Agent]] = {}
        for agent in named.values():
            single.setdefault((agent.profile.region, matcher.vector(agent.facts)), []).append(agent)
        for profile, uids in list(self._alike.items()):
            if profile.tells(matcher.keys):
                yield profile.region, matcher.vector(profile.shared()), self._agents(profile, uids, named)
            else:
                for agent in self._agents(profile, uids, named):
                    single.setdefault((profile.region, matcher.vector(agent.facts)), []).append(agent)
        for (region, vector), agents in single.items():
            yield region, vector, iter(agents)

    def vectors(self, matcher: Matcher) -> dict[int, str]:
        """All vectors that agents have by a matcher → the id of an agent that has it."""
        found: dict[int, str] = {}
        for _, vector, agents in self.partition(matcher):
            if vector not in found and (agent := next(agents, None)) is not None:
                found[vector] = agent.agent_id
        return found

    def _agents(self, profile: Profile, uids: Iterable[bytes], but: Container[bytes]) -> Iterator[Agent]:
        # Agents may come and go while another thread goes through them.
        for uid in list(uids):
            agent = self.agents.get(uid)
            if agent is not None and agent.profile is profile and uid not in but:
                yield agent

    def live_regions(self) -> set[str]:
        """Regions that have agents, or a node that is connected."""
        return {node.region for node in list(self.nodes.values()) if node.agents or node.connected}

    # ---- what can be said of nodes and their agents now

    def policy_age_s(self, node: NodeState) -> float | None:
        """How old the policy of a connected node is now, as far as it can be told; None where it cannot."""
        if node.policy_age_s is None or not node.connected:
            return None
        return node.policy_age_s + self._clock.monotonic() - node.status_at

    def is_heard(self, node: NodeState) -> bool:
        """Whether a node reports, has spoken lately, and holds what we hold.

        It says how it is every few seconds; both ends are compared after its stream came up.
        """
        fresh = self._clock.monotonic() - node.status_at < _SILENT_NODE_S
        return node.reporting > 0 and node.verified and fresh

    def is_gone(self, node: NodeState) -> bool:
        """Whether nobody need wait for a node: it said goodbye, or is away for long while another of its region is up."""
        if node.connected:
            return False
        away_ms = self._clock.unix_ms() - node.last_seen_ms
        return node.departed or (
            away_ms >= _GONE_AFTER_MS
            and any(other.connected for other in list(self.nodes.values()) if other.region == node.region)
        )

    def connected(self, one: Agent | Cell) -> bool | None:
        """Whether an agent, or those of a cell, are connected; None where nobody knows.

        Nobody does while its node's link is down, and after that until the node has reported it or both ends were compared.
        """
        node = self.nodes.get(one.node)  # one that is forgotten meanwhile is none
        if node is None or not node.reporting or node.unstored is not None:
            return None
        return one.connected if node.verified or one.stream == node.streams else None

    def healthy(self, one: Agent | Cell) -> bool | None:
        """Its health; None where nobody knows: it told none, or is not connected."""
        return one.healthy if self.connected(one) else None
