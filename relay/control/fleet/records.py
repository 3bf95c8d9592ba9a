"""The database tables of agents and nodes."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from operator import attrgetter
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from relay.control.fleet.agents import Agent
from relay.control.fleet.nodes import NodeState
from relay.control.storage import schema
from relay.control.storage.database import Database
from relay.control.storage.rows import remove, replace
from relay.control.storage.sealed import read_all
from relay.errors import NotFound
from relay.fleet.names import HOST, VERSION
from relay.observe import log
from relay.policy.model import canonical

_log = log.get("opamp-relay.fleet")
_NAME_CHARS = 512
TEXT_CHARS = 256
"""The stored length of a version or host name; longer ones are truncated."""
_BATCH_ROWS = 2_000
"""Rows per read: those of a whole fleet would fill the memory."""
_AGENTS = schema.agents.c
_STATE_COLUMNS = (_AGENTS.instance_uid, _AGENTS.state)
LISTED = ("agent_id", "connected", "healthy", "status", "version", "host", "changed_ms", "session_started_ms")


_columns_of = attrgetter(*LISTED)


def as_text(value: Any) -> str:
    """A label or attribute value as users write it; empty for None."""
    if value is None:
        return ""
    return value if isinstance(value, str) else canonical(value).decode()


def text_of(agent: Agent, attribute: str) -> str:
    """An attribute of an agent as text; empty if it has none."""
    return as_text(agent.profile.value(attribute, agent.own))


def row_of(agent: Agent, state: bytes) -> dict[str, Any]:
    """An agent's row.

    Args:
        state: its AgentState, as its node serialised it.
    """
    region, _, node = agent.node.partition("/")
    return {
        "instance_uid": agent.uid,
        "region": region,
        "node": node,
        "state": state,
        "forgotten": agent.forgotten,
        **dict(zip(LISTED, listed(agent), strict=True)),
    }


def listed(agent: Agent) -> tuple[Any, ...]:
    """The values of the columns `LISTED`, by which lists are filtered and sorted."""
    return (
        agent.agent_id[:_NAME_CHARS],
        agent.connected,
        agent.healthy,
        agent.status,
        text_of(agent, VERSION)[:TEXT_CHARS],
        text_of(agent, HOST)[:TEXT_CHARS],
        agent.changed_ms,
        agent.session_started_ms,
    )


def is_stale(agent: Agent, row: Any) -> bool:
    """Whether the columns of a row differ from the agent, for example because an older version wrote it."""
    return listed(agent) != _columns_of(row)


class Records:
    """Reads and writes agents and nodes."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def nodes(self) -> list[Any]:
        """The rows of all nodes. Damaged rows are logged and left out."""
        async with self._database.read() as connection:
            rows, damaged = await read_all(connection, schema.nodes)
        for key in damaged:
            # The node sends all of it again when it connects.
            _log.error("row_damaged", table="nodes", key=key)
        return rows

    async def agents(self) -> AsyncIterator[list[Any]]:
        """The rows of all agents, in batches. Damaged rows are logged and left out."""
        last = b""
        while True:
            async with self._database.read() as connection:
                keys = sa.select(_AGENTS.instance_uid).where(_AGENTS.instance_uid > last)
                keys = keys.order_by(_AGENTS.instance_uid).limit(_BATCH_ROWS)
                uids = (await connection.execute(keys)).scalars().all()
                if not uids:
                    return
                between = _AGENTS.instance_uid > last, _AGENTS.instance_uid <= uids[-1]
                rows, damaged = await read_all(connection, schema.agents, *between)
            for key in damaged:
                # The digests tell its node, which sends it again.
                _log.error("row_damaged", table="agents", key=key)
            yield rows
            last = uids[-1]

    async def select(self, query: sa.Select[Any]) -> list[Any]:
        """Run a query.

        Raises:
            StoreError: the database failed.
        """
        async with self._database.read() as connection:
            return list((await connection.execute(query)).all())

    async def row(self, agent: Agent) -> Any:
        """Return the row of an agent.

        Raises:
            NotFound: it was removed meanwhile, or its row is damaged.
            StoreError: the database failed.
        """
        async with self._database.read() as connection:
            rows, _ = await read_all(connection, schema.agents, _AGENTS.instance_uid == agent.uid)
        if not rows:
            raise NotFound(f"{agent.agent_id} no longer exists")
        return rows[0]

    async def states(self, uids: Sequence[bytes]) -> dict[bytes, bytes]:
        """Return the serialised states of agents, without those that are removed or damaged.

        Raises:
            StoreError: the database failed.
        """
        states: dict[bytes, bytes] = {}
        async with self._database.read() as connection:
            for i in range(0, len(uids), _BATCH_ROWS):
                batch = _AGENTS.instance_uid.in_(uids[i : i + _BATCH_ROWS])
                rows, _ = await read_all(connection, schema.agents, batch, columns=_STATE_COLUMNS)
                states |= {row.instance_uid: row.state for row in rows}
        return states

    async def replace(self, connection: AsyncConnection, agents: Iterable[tuple[Agent, bytes]]) -> None:
        """Write agents and their states, in the caller's transaction."""
        await replace(connection, schema.agents, [row_of(agent, state) for agent, state in agents])

    async def remove(self, connection: AsyncConnection, uids: Iterable[bytes]) -> None:
        """Delete agents, in the caller's transaction."""
        await remove(connection, schema.agents, [{"instance_uid": uid} for uid in uids])

    async def forget(self, connection: AsyncConnection, uids: Sequence[bytes]) -> None:
        """Mark agents as disconnected and forgotten, in the caller's transaction."""
        for i in range(0, len(uids), _BATCH_ROWS):
            batch = _AGENTS.instance_uid.in_(uids[i : i + _BATCH_ROWS])
            await connection.execute(sa.update(schema.agents).where(batch).values(forgotten=True, connected=False))

    async def mend(self, stale: Sequence[Mapping[str, Any]], misplaced: Sequence[bytes]) -> None:
        """Rewrite rows whose columns do not match their states, and delete rows that hold the state of another agent.

        Raises:
            StoreError: the database failed.
        """
        if stale or misplaced:
            async with self._database.write() as connection:
                await replace(connection, schema.agents, stale)
                await self.remove(connection, misplaced)

    async def store_nodes(self, nodes: Iterable[NodeState]) -> None:
        """Write nodes.

        Raises:
            StoreError: the database failed.
        """
        rows = [
            {
                "region": node.region,
                "name": node.name,
                "trusted": json.dumps(node.trusted),
                "software_version": node.software_version,
                "last_seen_ms": node.last_seen_ms,
                "departed": node.departed,
            }
            for node in nodes
        ]
        async with self._database.write() as connection:
            await replace(connection, schema.nodes, rows)
