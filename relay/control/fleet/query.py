"""Queries for agents: filtered, sorted and paged lists, and one agent by name.

The database filters and sorts. The census decides what the database does not know: labels, and which agents are
connected at a node that has just come back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import sqlalchemy as sa

from relay.control.fleet.agents import Agent
from relay.control.fleet.census import Cell, Census
from relay.control.fleet.fleet import Fleet
from relay.control.fleet.records import TEXT_CHARS, as_text, text_of
from relay.control.storage import schema
from relay.errors import NotFound, Problem, Refused
from relay.fleet.names import HOST, MIN_PREFIX_CHARS, VERSION, Names, resolve
from relay.ids import parse_uid

_AGENTS = schema.agents.c
_ROWS = 1_000
"""Rows of the first read for a page. Each further read is four times as large."""
_MAX_CANDIDATES = 1_000
"""The most agents to consider for an ambiguous name."""


Labels = frozenset[tuple[str, str]]
"""Keys and values, as text."""
Scopes = tuple[Labels, ...]


@dataclass(frozen=True, slots=True)
class Query:
    """Which agents to list, and in which order. All filters that are set must match."""

    status: str = ""
    healthy: bool | None = None
    connected: bool | None = None
    region: str = ""
    node: str = ""
    """NAME or REGION/NAME."""
    version: str = ""
    labels: Labels = frozenset()
    scopes: Scopes = ()
    """Agents must have all labels of one of them, if there are any."""
    sort: str = "agent_id"
    """A key of `SORTS`; a `-` in front reverses the order."""
    limit: int | None = None
    after: str = ""
    """Agent id or instance_uid of the last agent on the previous page."""


class Page(NamedTuple):
    """One page of a list."""

    agents: list[Agent]
    total: int
    """The length of the whole list."""
    more: bool
    """There is a next page."""


_Columns = tuple[sa.ColumnElement[Any], ...]
SORTS: dict[str, _Columns] = {
    "agent_id": (),
    "region": (_AGENTS.region,),
    "node": (_AGENTS.region, _AGENTS.node),
    "status": (_AGENTS.status,),
    "version": (_AGENTS.version,),
    "host.name": (_AGENTS.host,),
    "last_change": (_AGENTS.changed_ms,),
}
"""Order → columns to sort by before the agent id."""


def parse_labels(terms: Iterable[str]) -> Labels:
    """Parse `k=v` terms. All must match, so two values for one key match no agent.

    Raises:
        Refused: a term is not k=v.
    """
    pairs = set()
    for term in terms:
        key, equals, value = term.partition("=")
        if not equals:
            raise Refused([Problem("request", 0, "label", f"{term!r} is not k=v")])
        pairs.add((key, value))
    return frozenset(pairs)


def has_labels(agent: Agent, labels: Labels, scopes: Scopes = ()) -> bool:
    """Whether an agent has all these labels, and all of one of the scopes."""
    if not labels and not scopes:
        return True
    profile = agent.profile
    is_told = profile.tells(_keys(labels, scopes))
    return _includes(profile.labels if is_told else agent.facts.labels, labels, scopes)


def _keys(labels: Labels, scopes: Scopes) -> set[str]:
    return {key for terms in (labels, *scopes) for key, _ in terms}


def _includes(labels: Mapping[str, Any], terms: Labels, scopes: Scopes) -> bool:
    def has(wanted: Labels) -> bool:
        return all(key in labels and as_text(labels[key]) == value for key, value in wanted)

    return has(terms) and (not scopes or any(map(has, scopes)))


async def choose(fleet: Fleet, query: Query) -> Page:
    """Return a page of the agents that match a query.

    Raises:
        Refused: the order does not exist.
        NotFound: `after` is not a known agent.
        StoreError: the database failed.
    """
    census = fleet.census
    name = query.sort.removeprefix("-")
    if name not in SORTS:
        raise Refused([Problem("request", 0, "sort", f"{name} is not one of {', '.join(SORTS)}")])
    where = _where(census, query)
    row = await fleet.records.row(_last(census, query.after)) if query.after else None
    columns = (_AGENTS.instance_uid, _AGENTS.agent_id, *SORTS[name])
    matches: list[Agent] = []
    rows = None if query.limit is None else max(_ROWS, query.limit + 1)
    while True:
        select = sa.select(*columns).where(*where, *_after(query.sort, row)).order_by(*_order(query.sort)).limit(rows)
        batch = await fleet.records.select(select)
        # In a thread, because it may visit many agents: nodes must be answered meanwhile.
        matches += await asyncio.to_thread(_matching, census, batch, query)
        if rows is None or query.limit is None or len(batch) < rows or len(matches) > query.limit:
            break
        # Too few of these rows match the filters that the database does not know: read on.
        row, rows = batch[-1], 4 * rows
    page = matches if query.limit is None else matches[: query.limit]
    return Page(page, await asyncio.to_thread(_total, census, query), len(matches) > len(page))


def _columns(sort: str) -> tuple[_Columns, _Columns]:
    """Return (columns that a `-` reverses, columns after them)."""
    columns, names = SORTS[sort.removeprefix("-")], (_AGENTS.agent_id, _AGENTS.instance_uid)
    return (columns, names) if columns else (names[:1], names[1:])


def _order(sort: str) -> list[sa.ColumnElement[Any]]:
    first, then = _columns(sort)
    return [*(column.desc() if sort.startswith("-") else column for column in first), *then]


def _after(sort: str, row: Any) -> list[sa.ColumnElement[bool]]:
    """The condition for what follows a row; none if there is no row."""
    if row is None:
        return []
    first, then = _columns(sort)

    def values(of: Iterable[Any]) -> sa.Tuple:
        return sa.tuple_(*(getattr(row, column.name) for column in of))

    key, last_key = sa.tuple_(*first), values(first)
    tied = sa.and_(key == last_key, sa.tuple_(*then) > values(then))
    return [sa.or_(key < last_key if sort.startswith("-") else key > last_key, tied)]


def _last(census: Census, name: str) -> Agent:
    uid = parse_uid(name)
    agent = census.agents.get(uid) if uid is not None else None
    shown = [a for a in census.by_id(name) if not a.hidden]
    last = agent or max(shown, key=lambda a: a.uid, default=None)  # the last in most orders
    if last is None:
        raise NotFound(f"after: no agent {name} is in this list")
    return last


def _where(census: Census, query: Query) -> list[sa.ColumnElement[bool]]:
    """The filters that the database knows, some only approximately; `_matches` is exact."""
    conditions: list[sa.ColumnElement[bool]] = []
    if query.status:
        conditions.append(_AGENTS.status == query.status.upper())
    if query.region:
        conditions.append(_AGENTS.region == query.region)
    if query.node:
        region, slash, node = query.node.rpartition("/")
        conditions += [_AGENTS.node == node, *([_AGENTS.region == region] if slash else [])]
    if query.version:
        conditions.append(_AGENTS.version == query.version[:TEXT_CHARS])
    if query.connected is not None or query.healthy is not None:
        unknown = [node.key for node in census.nodes.values() if not node.reporting or node.unstored is not None]
        if unknown:
            conditions.append((_AGENTS.region + "/" + _AGENTS.node).not_in(unknown))
    if query.connected is not None:
        conditions.append(_AGENTS.connected.is_(query.connected))
    if query.healthy is not None:
        conditions += [_AGENTS.connected.is_(True), _AGENTS.healthy.is_(query.healthy)]
    return conditions


def _matching(census: Census, rows: Iterable[Any], query: Query) -> list[Agent]:
    agents = (census.agents.get(row.instance_uid) for row in rows)
    return [agent for agent in agents if agent is not None and _matches(census, agent, query)]


def _matches(census: Census, agent: Agent, query: Query) -> bool:
    return (
        not agent.hidden
        and _counts(census, agent, query)
        and (not query.version or text_of(agent, VERSION) == query.version)
        and has_labels(agent, query.labels, query.scopes)
    )


def _counts(census: Census, one: Agent | Cell, query: Query) -> bool:
    """Whether an agent, or the agents of a cell, match a query apart from its labels and version."""
    node = census.nodes.get(one.node)
    return node is not None and (
        (not query.status or one.status == query.status.upper())
        and (query.healthy is None or census.healthy(one) is query.healthy)
        and (query.connected is None or census.connected(one) is query.connected)
        and (not query.region or node.region == query.region)
        and (not query.node or query.node in (node.name, node.key))
    )


def _total(census: Census, query: Query) -> int:
    """Count the matching agents: by cells where possible, one by one where their profile does not share the values."""
    keys = _keys(query.labels, query.scopes) | ({VERSION} if query.version else set())
    total = 0
    unshared = set()
    for cell, number in list(census.cells.items()):
        if not _counts(census, cell, query):
            continue
        profile = cell.profile
        if not profile.tells(keys):
            unshared.add(profile)
            continue
        has_version = not query.version or as_text(profile.attributes.get(VERSION)) == query.version
        if has_version and _includes(profile.labels, query.labels, query.scopes):
            total += number
    if unshared:
        total += sum(agent.profile in unshared and _matches(census, agent, query) for agent in census.visible())
    return total


async def find(fleet: Fleet, name: str, is_shown: Callable[[Agent], bool] = lambda _: True) -> Agent:
    """Return the agent with this instance_uid, agent id or host.name, or with a unique prefix of one.

    Args:
        is_shown: whether somebody may know of an agent; the others do not exist for them.

    Raises:
        NotFound: no agent matches.
        Conflict: several agents match.
        StoreError: the database failed.
    """
    census = fleet.census
    uid = parse_uid(name)
    if uid is not None and uid in census.agents and is_shown(census.agents[uid]):
        return census.agents[uid]
    if named := [agent for agent in census.by_id(name) if not agent.hidden and is_shown(agent)]:
        return named[0]
    conditions = [_AGENTS.host == name[:TEXT_CHARS]]
    if MIN_PREFIX_CHARS <= len(name) <= TEXT_CHARS:
        conditions += [
            _AGENTS.agent_id.startswith(name, autoescape=True),
            _AGENTS.host.startswith(name, autoescape=True),
        ]
        if between := _uid_range(name):
            conditions.append(_AGENTS.instance_uid.between(*between))
    select = sa.select(_AGENTS.instance_uid).where(sa.or_(*conditions))
    select = select.order_by(_AGENTS.host != name, _AGENTS.agent_id).limit(_MAX_CANDIDATES)
    agents = [census.agents.get(row.instance_uid) for row in await fleet.records.select(select)]
    candidates = [agent for agent in agents if agent is not None and not agent.hidden and is_shown(agent)]
    return resolve(name, [(Names(a.agent_id, a.uid, text_of(a, HOST)), a) for a in candidates])


def _uid_range(name: str) -> tuple[bytes, bytes] | None:
    """Return the (first, last) instance_uid with this prefix; None if it cannot be one."""
    digits = name.replace("-", "").lower()
    if not digits or len(digits) > 32 or not set(digits) <= set("0123456789abcdef"):
        return None
    return bytes.fromhex(digits.ljust(32, "0")), bytes.fromhex(digits.ljust(32, "f"))
