"""Who has an instance_uid, where more than one agent was heard under it; see `relay.opamp.contest`.

Owns the contests, and the challenges: a newcomer that says who it is waits until the agent that has the uid was heard, or
was silent for two seconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from relay.node.live import Live
from relay.opamp import identity
from relay.opamp.contest import Contest, Speaker, Verdict, goes_on_alone
from relay.pb.opamp.v1 import opamp_pb2 as pb
from relay.transport.ports import Caller, Connection

_ANSWER_S = 2.0
"""How long a live agent may take to answer a ping."""
_MOST = 10_000
"""Uids of which contests are remembered; the oldest is forgotten."""


class Arrival(NamedTuple):
    """A message, and how it came."""

    connection: Connection
    caller: Caller
    content: bytes


@dataclass(slots=True, eq=False)
class _Challenge:
    holder: Live
    newcomer: Speaker
    arrival: Arrival
    """The newcomer's message, to be taken when the holder is gone."""
    timer: asyncio.TimerHandle


class Contests:
    """All contests of a node.

    Args:
        won: the newcomer has the uid: (uid, the agent that had it, the newcomer's message).
        lost: the newcomer needs another uid: (uid, its connection, who it is).
    """

    def __init__(
        self, *, won: Callable[[bytes, Live, Arrival], None], lost: Callable[[bytes, Connection, Caller], None]
    ) -> None:
        self._won = won
        self._lost = lost
        self._contests: dict[bytes, Contest] = {}
        self._challenges: dict[bytes, _Challenge] = {}

    def has(self, uid: bytes) -> bool:
        """Whether two were heard under a uid."""
        return uid in self._contests

    def hear(self, uid: bytes, holder: Live, message: pb.AgentToServer, connection: Connection) -> Verdict:
        """Say who sent a message under a uid that `holder` has; who has it afterwards is for the caller to bring about."""
        contest = self._contests.get(uid)
        last = holder.session.record.sequence_num
        if contest is None and holder.connection is connection and goes_on_alone(message.sequence_num, last):
            self.heard(holder)
            return Verdict.SAME
        speaker = holder.speaker
        said = identity.instance_id_of(message.agent_description) if message.HasField("agent_description") else None
        verdict = (contest or Contest()).hear(speaker, said, message.sequence_num)
        if holder.connection is connection:
            if verdict is Verdict.STRANGER:
                self._contest(uid).replaced(speaker)
            elif verdict is Verdict.SAME:
                self.heard(holder)
        return verdict

    def _contest(self, uid: bytes) -> Contest:
        contest = self._contests.pop(uid, None) or Contest()
        self._contests[uid] = contest  # the newest last
        while len(self._contests) > _MOST:
            del self._contests[next(iter(self._contests))]
        return contest

    def challenge(self, uid: bytes, holder: Live, message: pb.AgentToServer, arrival: Arrival, *, ping: bool) -> None:
        """A newcomer on a connection of its own says who it is: wait for the agent that has the uid.

        Args:
            arrival: the message as it came.
            ping: whether an answer to a ping would be the agent's.
        """
        newcomer = Speaker(identity.instance_id_of(message.agent_description), message.sequence_num)
        known = self._challenges.get(uid)
        if known is not None:
            if known.arrival.connection is arrival.connection:
                known.arrival, known.newcomer = arrival, newcomer
            return
        timer = asyncio.get_running_loop().call_later(_ANSWER_S, self._silent, uid)
        self._challenges[uid] = _Challenge(holder, newcomer, arrival, timer)
        holder.connection.session = None  # else a heartbeat would be answered without our hearing of it
        if ping:
            holder.connection.ping(lambda: self.heard(holder))

    def heard(self, holder: Live) -> None:
        """An agent lives: who challenges it needs another uid."""
        uid = holder.session.record.instance_uid
        challenge = self._challenges.get(uid)
        if challenge is not None and challenge.holder is holder:
            self._end(uid)
            self._contest(uid).settle(challenge.newcomer)
            self._lost(uid, challenge.arrival.connection, challenge.arrival.caller)

    def _silent(self, uid: bytes) -> None:
        challenge = self._end(uid)
        self._contest(uid).replaced(challenge.holder.speaker)
        self._won(uid, challenge.holder, challenge.arrival)

    def _end(self, uid: bytes) -> _Challenge:
        challenge = self._challenges.pop(uid)
        challenge.timer.cancel()
        return challenge

    def gone(self, uid: bytes, holder: Live) -> None:
        """The agent that has the uid has left: who challenges it need not wait."""
        challenge = self._challenges.get(uid)
        if challenge is not None and challenge.holder is holder:
            asyncio.get_running_loop().call_soon(self._silent_now, uid, challenge)

    def _silent_now(self, uid: bytes, challenge: _Challenge) -> None:
        if self._challenges.get(uid) is challenge:
            self._silent(uid)

    def disconnected(self, connection: Connection) -> None:
        """A newcomer has left."""
        for uid in [uid for uid, c in self._challenges.items() if c.arrival.connection is connection]:
            self._end(uid)

    def close(self) -> None:
        """End what waits."""
        for uid in list(self._challenges):
            self._end(uid)
