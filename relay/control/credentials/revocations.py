"""Revocations of agents' credentials, and how far each has come."""

from __future__ import annotations

import asyncio
import dataclasses
import re
from dataclasses import dataclass
from typing import Any

from relay.aio.clock import Clock
from relay.auth.revocations import MAX_REVOCATIONS, Kind
from relay.control.access.actor import Actor
from relay.control.access.revocations import Revocation
from relay.control.fleet.agents import owner_of
from relay.control.fleet.fleet import Fleet
from relay.control.fleet.nodes import NodeState
from relay.control.ledger.change import Change, Entry
from relay.control.ledger.ledger import Ledger
from relay.control.ledger.state import State
from relay.control.regions.publisher import Publisher
from relay.errors import Conflict, NotFound, Problem, Refused
from relay.fleet.view import rfc3339
from relay.pb.relay.v1 import link_pb2
from relay.policy.access import REVOCATIONS

_LONG_AWAY_MS = 15 * 60_000
_KEY_ID = re.compile(r"key-[0-9a-f]{10}")


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

    def __init__(self, ledger: Ledger, fleet: Fleet, publisher: Publisher, *, clock: Clock) -> None:
        self._ledger = ledger
        self._fleet = fleet
        self._publisher = publisher
        self._clock = clock

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
        if kind is Kind.KEY and not _KEY_ID.fullmatch(value):
            # Perhaps it is the secret itself, so the message does not repeat it.
            reason = "expected the id of an API key, key- and ten hexadecimal digits; see `opampctl key list`"
            raise Refused([Problem("request", 0, "value", reason)])
        if kind is Kind.CERTIFICATE:
            value = _serial(value)
        if kind is Kind.AGENT:
            await self._check_single(value)
        return await self._ledger.change(
            actor, lambda state, now_ms: _revoke(state, Revocation(kind, value, reason, actor.name, now_ms))
        )

    async def is_known(self, revocation: Revocation) -> bool | None:
        """Whether anybody has what was revoked; None where nothing here would know."""
        value, state = revocation.value, self._ledger.state
        if revocation.kind is Kind.KEY:
            return value in state.api_keys
        if revocation.kind not in (Kind.AGENT, Kind.SUBJECT):
            return None
        if any(key.subject == value for key in state.api_keys) or self._fleet.census.by_id(value):
            return True
        owners = {owner_of(value, is_single=is_single) for is_single in (True, False)}
        agents = list(self._fleet.census.agents.values())
        return await asyncio.to_thread(lambda: any(agent.owner in owners for agent in agents))

    async def _check_single(self, agent_id: str) -> None:
        """Raise Conflict if an agent is known only by credentials that others use as well."""
        uids = [agent.uid for agent in self._fleet.census.by_id(agent_id) if not agent.hidden]
        states = [link_pb2.AgentState.FromString(s) for s in (await self._fleet.records.states(uids)).values()]
        shared = [state for state in states if state.subject and not state.id_proved]
        if shared and not any(state.id_proved for state in states):
            subject = shared[0].subject
            raise Conflict(
                f"{agent_id} has no credential of its own: it came with {subject}'s, which others share."
                f" To take it from all of them, revoke subject {subject}"
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
            regions.setdefault(node.region, []).append(node)
        # A node that said goodbye does not count beside others; a region of such nodes still serves agents when it is back.
        staying = {region: [n for n in nodes if not n.departed] or nodes for region, nodes in regions.items()}
        return [self._reach(region, nodes) for region, nodes in sorted(staying.items())]

    def _reach(self, region: str, nodes: list[NodeState]) -> Reach:
        if any(node.connected for node in nodes):  # one that was away for long beside another does not count
            limit_ms = self._clock.unix_ms() - _LONG_AWAY_MS
            nodes = [node for node in nodes if node.connected or node.last_seen_ms > limit_ms]
        without = [node for node in nodes if not self._has(node)]
        away = [node.last_seen_ms for node in without if not node.connected]
        return Reach(region, not without, rfc3339(min(away)) if away else "")

    def _has(self, node: NodeState) -> bool:
        """Whether a node holds everything that was revoked until now, and has accepted it."""
        rejects = any(rejected["name"] == REVOCATIONS for rejected in node.rejected)
        return not rejects and self._publisher.is_held(node.region, node.manifest)


def _serial(text: str) -> str:
    """A serial number of a certificate as nodes know it: hexadecimal, lower case, without colons and leading zeros.

    Raises:
        Refused: it is not one.
    """
    serial = text.lower().replace(":", "").removeprefix("0x").lstrip("0")
    if not serial or not set(serial) <= set("0123456789abcdef"):
        raise Refused([Problem("request", 0, "value", "expected the serial number of a certificate in hexadecimal")])
    return serial


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
