"""Revocations of agents' credentials, and how far each has come."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from relay.auth.revocations import MAX_REVOCATIONS, Kind
from relay.control.access.actor import Actor
from relay.control.access.revocations import Revocation
from relay.control.fleet.fleet import Fleet
from relay.control.fleet.nodes import NodeState
from relay.control.ledger.change import Change, Entry
from relay.control.ledger.ledger import Ledger
from relay.control.ledger.state import State
from relay.control.regions.publisher import Publisher
from relay.errors import Conflict, NotFound
from relay.fleet.view import rfc3339
from relay.pb.relay.v1 import link_pb2


@dataclass(frozen=True, slots=True)
class Reach:
    """How far a revocation has come in a region."""

    region: str
    in_force: bool
    not_heard_since: str
    """When a node that does not have it was last heard from; empty if all of them are connected."""

    def plain(self) -> dict[str, Any]:
        """As JSON."""
        return {"region": self.region, "in_force": self.in_force, "not_heard_since": self.not_heard_since}


class RevocationRegistry:
    """All revocations."""

    def __init__(self, ledger: Ledger, fleet: Fleet, publisher: Publisher) -> None:
        self._ledger = ledger
        self._fleet = fleet
        self._publisher = publisher

    def get(self, revocation_id: str) -> Revocation:
        """One revocation.

        Raises:
            NotFound: there is none.
        """
        found = self._ledger.state.revocations.get(revocation_id)
        if found is None:
            raise NotFound(f"there is no revocation {revocation_id}")
        return found

    async def revoke(self, kind: Kind, value: str, reason: str, *, actor: Actor) -> Revocation:
        """Refuse a credential, or all credentials of a subject, everywhere and from now on.

        Raises:
            Conflict: there are too many; or it names an agent whose credential it shares with others.
        """
        if kind is Kind.AGENT:
            await self._check_single(value)
        return await self._ledger.change(
            actor, lambda state, now_ms: _revoke(state, Revocation(kind, value, reason, actor.name, now_ms))
        )

    async def _check_single(self, agent_id: str) -> None:
        """Raise Conflict if an agent came with a credential that others use as well."""
        agents = self._fleet.census.agents.values()
        uids = [agent.uid for agent in agents if agent.agent_id == agent_id and not agent.hidden]
        for content in (await self._fleet.records.states(uids)).values():
            state = link_pb2.AgentState.FromString(content) if isinstance(content, bytes) else content
            if state.subject and not state.id_proved:
                raise Conflict(
                    f"{agent_id} has no credential of its own: it came with {state.subject}'s, which others share."
                    f" To take it from all of them, revoke subject {state.subject}"
                )

    async def unrevoke(self, revocation_id: str, *, actor: Actor) -> None:
        """Take a revocation back.

        Raises:
            NotFound: there is none with this id.
        """
        await self._ledger.change(actor, lambda state, _: _unrevoke(state, revocation_id))

    def reach(self) -> list[Reach]:
        """Where everything that was revoked until now is in force."""
        regions: dict[str, list[NodeState]] = {}
        for node in self._fleet.census.nodes.values():
            if not node.departed:
                regions.setdefault(node.region, []).append(node)
        return [self._reach(region, nodes) for region, nodes in sorted(regions.items())]

    def _reach(self, region: str, nodes: list[NodeState]) -> Reach:
        away = [node.last_seen_ms for node in nodes if not node.connected]
        is_current = all(self._publisher.is_held(region, node.manifest) for node in nodes)
        return Reach(region, is_current and not away, rfc3339(min(away)) if away else "")


def _revoke(state: State, revocation: Revocation) -> Change[Revocation]:
    known = state.revocations.get(revocation.id)
    if known is not None:
        return Change(state, known)
    if len(state.revocations) >= MAX_REVOCATIONS:
        raise Conflict(f"there are {MAX_REVOCATIONS} revocations, the maximum; take some back")
    entry = Entry("revoke", f"{revocation.kind.value}/{revocation.value}", reason=revocation.reason)
    revocations = {**state.revocations, revocation.id: revocation}
    return Change(dataclasses.replace(state, revocations=revocations), revocation, entries=[entry])


def _unrevoke(state: State, revocation_id: str) -> Change[None]:
    found = state.revocations.get(revocation_id)
    if found is None:
        raise NotFound(f"there is no revocation {revocation_id}")
    entry = Entry("unrevoke", f"{found.kind.value}/{found.value}", reason=found.reason)
    rest = {key: value for key, value in state.revocations.items() if key != revocation_id}
    return Change(dataclasses.replace(state, revocations=rest), None, entries=[entry])
