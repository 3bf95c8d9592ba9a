"""Choosing agents: filters, order and pages of a list, and one agent by what people call it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from relay.control.fleet.agents import Agent
from relay.control.fleet.fleet import Fleet
from relay.errors import NotFound, Problem, Refused
from relay.fleet.names import HOST, Names, resolve
from relay.ids import parse_uid
from relay.policy.model import canonical

VERSION = "service.version"


@dataclass(frozen=True, slots=True)
class Query:
    """Which agents, in which order; all that is named must match."""

    status: str = ""
    healthy: bool | None = None
    connected: bool | None = None
    region: str = ""
    node: str = ""
    """NAME or REGION/NAME."""
    version: str = ""
    labels: frozenset[tuple[str, str]] = frozenset()
    """Values as text."""
    sort: str = "agent_id"
    """A key of `SORTS`; a `-` before it turns the order around."""
    limit: int | None = None
    after: str = ""
    """Agent id or instance_uid of the last agent of the page before."""


_Key = Callable[[Fleet, Agent], Any]
SORTS: dict[str, _Key] = {
    "agent_id": lambda _, agent: agent.agent_id,
    "region": lambda fleet, agent: fleet.nodes[agent.node].region,
    "node": lambda _, agent: agent.node,
    "status": lambda _, agent: agent.status,
    "version": lambda fleet, agent: text_of(fleet, agent, VERSION),
    "host.name": lambda fleet, agent: text_of(fleet, agent, HOST),
    "last_change": lambda _, agent: agent.changed_ms,
}


def text_of(fleet: Fleet, agent: Agent, attribute: str) -> str:
    """An attribute of an agent as text; empty where it has none."""
    return as_text(fleet.facts_of(agent).attributes.get(attribute, ""))


def as_text(value: Any) -> str:
    """A label or an attribute as people write it."""
    return value if isinstance(value, str) else canonical(value).decode()


def wanted_labels(terms: Iterable[str]) -> frozenset[tuple[str, str]]:
    """`k=v` terms as pairs, all of which must match: two values of one key match nobody.

    Raises:
        Refused: one is not k=v.
    """
    wanted = set()
    for term in terms:
        key, equals, value = term.partition("=")
        if not equals:
            raise Refused([Problem("request", 0, "label", f"{term!r} is not k=v")])
        wanted.add((key, value))
    return frozenset(wanted)


def has_labels(fleet: Fleet, agent: Agent, wanted: Iterable[tuple[str, str]]) -> bool:
    """Whether an agent has all these labels (values as text)."""
    labels = fleet.facts_of(agent).labels
    return all(key in labels and as_text(labels[key]) == value for key, value in wanted)


def healthy(fleet: Fleet, agent: Agent) -> bool | None:
    """An agent's health; None where nobody knows: it told none, or is not connected."""
    return agent.healthy if fleet.connected(agent) else None


def rows(fleet: Fleet) -> list[Agent]:
    """One agent a row: of several uids of one agent id the live ones, or if none is live the newest."""
    first: dict[str, Agent] = {}
    more: dict[str, list[Agent]] = {}
    for agent in fleet.agents.values():
        name = agent.agent_id or agent.uid.hex()
        held = first.setdefault(name, agent)
        if held is not agent:
            more.setdefault(name, [held]).append(agent)
    for name, agents in more.items():
        live = [agent for agent in agents if agent.connected]
        first[name], *others = live or [max(agents, key=lambda a: a.session_started_ms)]
        more[name] = others
    return [*first.values(), *(agent for agents in more.values() for agent in agents)]


def choose(fleet: Fleet, query: Query) -> tuple[list[Agent], bool]:
    """The agents of a query, and whether there are more behind them.

    Raises:
        Refused: the order is none that there is.
        NotFound: `after` is no agent of the list.
    """
    name = query.sort.removeprefix("-")
    if name not in SORTS:
        raise Refused([Problem("request", 0, "sort", f"{name} is not one of {', '.join(SORTS)}")])
    key = SORTS[name]
    found = [agent for agent in rows(fleet) if _matches(fleet, agent, query)]
    found.sort(key=lambda agent: (agent.agent_id, agent.uid))
    found.sort(key=lambda agent: key(fleet, agent), reverse=query.sort.startswith("-"))
    begin = _behind(found, query.after) if query.after else 0
    end = len(found) if query.limit is None else begin + query.limit
    return found[begin:end], end < len(found)


def _matches(fleet: Fleet, agent: Agent, query: Query) -> bool:
    node = fleet.nodes[agent.node]
    return (
        (not query.status or agent.status == query.status.upper())
        and (query.healthy is None or healthy(fleet, agent) is query.healthy)
        and (query.connected is None or fleet.connected(agent) is query.connected)
        and (not query.region or node.region == query.region)
        and (not query.node or query.node in (node.name, agent.node))
        and (not query.version or text_of(fleet, agent, VERSION) == query.version)
        and (not query.labels or has_labels(fleet, agent, query.labels))
    )


def _behind(agents: list[Agent], name: str) -> int:
    uid = parse_uid(name)
    for i, agent in enumerate(agents):
        if agent.agent_id == name or (uid is not None and agent.uid == uid):
            return i + 1
    raise NotFound(f"after: no agent {name} is in this list")


def find(fleet: Fleet, name: str) -> Agent:
    """An agent by instance_uid, agent id, host.name, or the beginning of one of them that no other agent has.

    Raises:
        NotFound: nobody knows it.
        Conflict: several agents fit.
    """
    uid = parse_uid(name)
    if uid is not None and uid in fleet.agents:
        return fleet.agents[uid]
    known = rows(fleet)
    if (named := next((a for a in known if a.agent_id == name), None)) is not None:
        return named  # without a look at what all others say of themselves
    return resolve(name, ((Names(a.agent_id, a.uid, text_of(fleet, a, HOST)), a) for a in known))
