"""Choosing agents: filters, order and pages of a list, and one agent by what people call it.

The database chooses and sorts; what it cannot know (labels, and who is connected at a node that is being heard again) is
looked up in the census.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import sqlalchemy as sa

from relay.control.fleet.agents import Agent
from relay.control.fleet.census import Cell, Census
from relay.control.fleet.fleet import Fleet
from relay.control.fleet.records import TEXT_CHARS, as_text, text_of
from relay.control.storage import schema
from relay.errors import NotFound, Problem, Refused
from relay.fleet.names import HOST, LEAST_PREFIX, VERSION, Names, resolve
from relay.ids import parse_uid

_AGENTS = schema.agents.c
_ROWS = 1_000
"""Rows that are asked for at once where a page is; four times as many after each time that they did not do."""
_MOST_ALIKE = 1_000
"""Agents that are looked at where many are called alike."""


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


class Page(NamedTuple):
    """Some agents of a list."""

    agents: list[Agent]
    total: int
    """How many the whole list has."""
    more: bool
    """There are some behind these."""


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
"""Order → the columns that come before the agent's id."""


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


def has_labels(agent: Agent, wanted: Collection[tuple[str, str]]) -> bool:
    """Whether an agent has all these labels (values as text)."""
    profile = agent.profile
    return _among(wanted, profile.labels if profile.tells({key for key, _ in wanted}) else agent.facts.labels)


def _among(wanted: Iterable[tuple[str, str]], labels: Mapping[str, Any]) -> bool:
    return all(key in labels and as_text(labels[key]) == value for key, value in wanted)


async def choose(fleet: Fleet, query: Query) -> Page:
    """The agents of a query.

    Raises:
        Refused: the order is none that there is.
        NotFound: `after` is no agent that is known.
        StoreError: the database failed.
    """
    census = fleet.census
    name = query.sort.removeprefix("-")
    if name not in SORTS:
        raise Refused([Problem("request", 0, "sort", f"{name} is not one of {', '.join(SORTS)}")])
    where = _where(census, query)
    row = await fleet.records.row(_last(census, query.after)) if query.after else None
    columns = (_AGENTS.instance_uid, _AGENTS.agent_id, *SORTS[name])
    found: list[Agent] = []
    rows = None if query.limit is None else max(_ROWS, query.limit + 1)
    while True:
        asked = sa.select(*columns).where(*where, *_behind(query.sort, row)).order_by(*_order(query.sort)).limit(rows)
        got = await fleet.records.select(asked)
        # In a thread, as all that may go through many agents: nodes are answered meanwhile.
        found += await asyncio.to_thread(_matching, census, got, query)
        if rows is None or query.limit is None or len(got) < rows or len(found) > query.limit:
            break
        # Of these too few match what the database cannot tell: go on behind them.
        row, rows = got[-1], 4 * rows
    page = found if query.limit is None else found[: query.limit]
    return Page(page, await asyncio.to_thread(_total, census, query), len(found) > len(page))


def _columns(sort: str) -> tuple[_Columns, _Columns]:
    """(those that a `-` turns around, those behind them)."""
    columns, names = SORTS[sort.removeprefix("-")], (_AGENTS.agent_id, _AGENTS.instance_uid)
    return (columns, names) if columns else (names[:1], names[1:])


def _order(sort: str) -> list[sa.ColumnElement[Any]]:
    first, then = _columns(sort)
    return [*(column.desc() if sort.startswith("-") else column for column in first), *then]


def _behind(sort: str, row: Any) -> list[sa.ColumnElement[bool]]:
    """What comes behind a row in an order; all where there is none."""
    if row is None:
        return []
    first, then = _columns(sort)

    def values(of: Iterable[Any]) -> sa.Tuple:
        return sa.tuple_(*(getattr(row, column.name) for column in of))

    here, there = sa.tuple_(*first), values(first)
    behind = sa.and_(here == there, sa.tuple_(*then) > values(then))
    return [sa.or_(here < there if sort.startswith("-") else here > there, behind)]


def _last(census: Census, name: str) -> Agent:
    uid = parse_uid(name)
    agent = census.agents.get(uid) if uid is not None else None
    shown = [a for a in census.named(name) if not a.hidden]
    found = agent or max(shown, key=lambda a: a.uid, default=None)  # the last in most orders
    if found is None:
        raise NotFound(f"after: no agent {name} is in this list")
    return found


def _where(census: Census, query: Query) -> list[sa.ColumnElement[bool]]:
    """What the database can tell; `_matches` is exact."""
    found: list[sa.ColumnElement[bool]] = []
    if query.status:
        found.append(_AGENTS.status == query.status.upper())
    if query.region:
        found.append(_AGENTS.region == query.region)
    if query.node:
        region, slash, node = query.node.rpartition("/")
        found += [_AGENTS.node == node, *([_AGENTS.region == region] if slash else [])]
    if query.version:
        found.append(_AGENTS.version == query.version[:TEXT_CHARS])
    if query.connected is not None or query.healthy is not None:
        unknown = [node.key for node in census.nodes.values() if not node.reporting or node.unstored is not None]
        if unknown:
            found.append((_AGENTS.region + "/" + _AGENTS.node).not_in(unknown))
    if query.connected is not None:
        found.append(_AGENTS.connected.is_(query.connected))
    if query.healthy is not None:
        found += [_AGENTS.connected.is_(True), _AGENTS.healthy.is_(query.healthy)]
    return found


def _matching(census: Census, rows: Iterable[Any], query: Query) -> list[Agent]:
    agents = (census.agents.get(row.instance_uid) for row in rows)
    return [agent for agent in agents if agent is not None and _matches(census, agent, query)]


def _matches(census: Census, agent: Agent, query: Query) -> bool:
    return (
        not agent.hidden
        and _counts(census, agent, query)
        and (not query.version or text_of(agent, VERSION) == query.version)
        and (not query.labels or has_labels(agent, query.labels))
    )


def _counts(census: Census, one: Agent | Cell, query: Query) -> bool:
    """Whether an agent, or those of a cell, match all of a query but its labels and its version."""
    node = census.nodes.get(one.node)
    return node is not None and (
        (not query.status or one.status == query.status.upper())
        and (query.healthy is None or census.healthy(one) is query.healthy)
        and (query.connected is None or census.connected(one) is query.connected)
        and (not query.region or node.region == query.region)
        and (not query.node or query.node in (node.name, node.key))
    )


def _total(census: Census, query: Query) -> int:
    """How many agents match: told by the sums, but where the values that are asked for are each agent's own."""
    asked = {key for key, _ in query.labels} | ({VERSION} if query.version else set())
    total = 0
    alone = set()
    for cell, number in list(census.cells.items()):
        if not _counts(census, cell, query):
            continue
        profile = cell.profile
        if not profile.tells(asked):
            alone.add(profile)
            continue
        has_version = not query.version or as_text(profile.attributes.get(VERSION)) == query.version
        if has_version and _among(query.labels, profile.labels):
            total += number
    if alone:
        total += sum(agent.profile in alone and _matches(census, agent, query) for agent in census.shown())
    return total


async def find(fleet: Fleet, name: str) -> Agent:
    """An agent by instance_uid, agent id, host.name, or the beginning of one of them that no other agent has.

    Raises:
        NotFound: nobody knows it.
        Conflict: several agents fit.
        StoreError: the database failed.
    """
    census = fleet.census
    uid = parse_uid(name)
    if uid is not None and uid in census.agents:
        return census.agents[uid]
    if named := [agent for agent in census.named(name) if not agent.hidden]:
        return named[0]
    alike = [_AGENTS.host == name[:TEXT_CHARS]]
    if LEAST_PREFIX <= len(name) <= TEXT_CHARS:
        alike += [_AGENTS.agent_id.startswith(name, autoescape=True), _AGENTS.host.startswith(name, autoescape=True)]
        if between := _uids(name):
            alike.append(_AGENTS.instance_uid.between(*between))
    asked = sa.select(_AGENTS.instance_uid).where(sa.or_(*alike))
    asked = asked.order_by(_AGENTS.host != name, _AGENTS.agent_id).limit(_MOST_ALIKE)
    agents = [census.agents.get(row.instance_uid) for row in await fleet.records.select(asked)]
    known = [agent for agent in agents if agent is not None and not agent.hidden]
    return resolve(name, [(Names(a.agent_id, a.uid, text_of(a, HOST)), a) for a in known])


def _uids(name: str) -> tuple[bytes, bytes] | None:
    """(first, last) instance_uid that begins so; None where none can."""
    digits = name.replace("-", "").lower()
    if not digits or len(digits) > 32 or not set(digits) <= set("0123456789abcdef"):
        return None
    return bytes.fromhex(digits.ljust(32, "0")), bytes.fromhex(digits.ljust(32, "f"))
