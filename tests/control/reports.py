"""Helpers for tests: reports of nodes."""

from __future__ import annotations

from typing import Any

from relay.control.fleet import query, views
from relay.control.fleet.fleet import Fleet
from relay.link.protocol.peer import Peer
from relay.pb.relay.v1 import link_pb2
from tests.fleet.agents import record

ONE, TWO = (Peer("eu", n, trusted="all") for n in ("one", "two"))


def entry(name: str, *, started: int = 1, connected: bool = True, uid: bytes = b"", **more: Any) -> link_pb2.AgentEntry:
    made = record(name, **more)
    if uid:
        made.instance_uid = uid  # type: ignore[assignment]
    made.session_started_ms, made.connected = started, connected
    return link_pb2.AgentEntry(instance_uid=made.instance_uid, state=made.state())


async def shown(fleet: Fleet, name: str, fields: frozenset[str] = frozenset()) -> dict[str, Any]:
    """An agent as people see it."""
    agent = await query.find(fleet, name)
    return views.of(fleet.census, agent, (await fleet.records.row(agent)).state, fields)


async def up(fleet: Fleet, *nodes: Peer) -> None:
    for node in nodes:
        await fleet.node_reporting(node)
