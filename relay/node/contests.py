"""Decides which agent keeps an instance_uid that more than one uses; see `relay.opamp.contest`.

Owns the contests and the challenges. In a challenge, a newcomer that has said who it is waits until the holder of the uid
answers, or is silent for two seconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from relay.node.live import Live
from relay.opamp import identity
from relay.opamp.contest import Contest, Speaker, Verdict, continues_sequence
from relay.pb.opamp.v1 import opamp_pb2 as pb
from relay.transport.ports import Caller, Connection

_ANSWER_S = 2.0
"""How long a live agent may take to answer a ping."""
_MAX_CONTESTS = 10_000
"""Beyond this number, the oldest contest is forgotten."""


class Arrival(NamedTuple):
    """A message, and how it arrived."""

    connection: Connection
    caller: Caller
    content: bytes


@dataclass(slots=True, eq=False)
class _Challenge:
    holder: Live
    newcomer: Speaker
    arrival: Arrival
    """The newcomer's message, which is processed if the holder is gone."""
    timer: asyncio.TimerHandle


class Contests:
    """All contests of a node.

    Args:
        won: called when the newcomer gets the uid, with the uid, the previous holder and the newcomer's message.
        lost: called when the newcomer needs another uid, with the uid, its connection and the caller.
    """

    def __init__(
        self, *, won: Callable[[bytes, Live, Arrival], None], lost: Callable[[bytes, Connection, Caller], None]
    ) -> None:
        self._won = won
        self._lost = lost
        self._contests: dict[bytes, Contest] = {}
        self._challenges: dict[bytes, _Challenge] = {}

    def has(self, uid: bytes) -> bool:
        """Whether more than one agent has used a uid."""
        return uid in self._contests

    def hear(self, uid: bytes, holder: Live, message: pb.AgentToServer, connection: Connection) -> Verdict:
        """Decide who sent a message with a uid that `holder` has. The caller acts on the verdict."""
        contest = self._contests.get(uid)
        last = holder.session.record.sequence_num
        if contest is None and holder.connection is connection and continues_sequence(message.sequence_num, last):
            self.heard(holder)
            return Verdict.SAME
        speaker = holder.speaker
        described = message.HasField("agent_description")
        instance_id = identity.instance_id_of(message.agent_description) if described else None
        verdict = (contest or Contest()).hear(speaker, instance_id, message.sequence_num)
        if holder.connection is connection:
            if verdict is Verdict.STRANGER:
                self._contest(uid).replace_holder(speaker)
            elif verdict is Verdict.SAME:
                self.heard(holder)
        return verdict

    def _contest(self, uid: bytes) -> Contest:
        contest = self._contests.pop(uid, None) or Contest()
        self._contests[uid] = contest  # the newest last
        while len(self._contests) > _MAX_CONTESTS:
            del self._contests[next(iter(self._contests))]
        return contest

    def challenge(self, uid: bytes, holder: Live, message: pb.AgentToServer, arrival: Arrival, *, ping: bool) -> None:
        """Let the holder of a uid prove that it is alive. The newcomer is on another connection and said who it is.

        Args:
            arrival: the newcomer's message.
            ping: whether a pong would come from the holder itself.
        """
        newcomer = Speaker(identity.instance_id_of(message.agent_description), message.sequence_num)
        current = self._challenges.get(uid)
        if current is not None:
            if current.arrival.connection is arrival.connection:
                current.arrival, current.newcomer = arrival, newcomer
            return
        timer = asyncio.get_running_loop().call_later(_ANSWER_S, self._give_up_holder, uid)
        self._challenges[uid] = _Challenge(holder, newcomer, arrival, timer)
        holder.connection.session = None  # otherwise the connection would answer heartbeats without telling us
        if ping:
            holder.connection.ping(lambda: self.heard(holder))

    def heard(self, holder: Live) -> None:
        """Record that the holder is alive. Its challenger needs another uid."""
        uid = holder.session.record.instance_uid
        challenge = self._challenges.get(uid)
        if challenge is not None and challenge.holder is holder:
            self._end(uid)
            self._contest(uid).settle(challenge.newcomer)
            self._lost(uid, challenge.arrival.connection, challenge.arrival.caller)

    def _give_up_holder(self, uid: bytes) -> None:
        challenge = self._end(uid)
        self._contest(uid).replace_holder(challenge.holder.speaker)
        self._won(uid, challenge.holder, challenge.arrival)

    def _end(self, uid: bytes) -> _Challenge:
        challenge = self._challenges.pop(uid)
        challenge.timer.cancel()
        return challenge

    def holder_left(self, uid: bytes, holder: Live) -> None:
        """Record that the holder has left. Its challenger need not wait."""
        challenge = self._challenges.get(uid)
        if challenge is not None and challenge.holder is holder:
            asyncio.get_running_loop().call_soon(self._give_up_if_current, uid, challenge)

    def _give_up_if_current(self, uid: bytes, challenge: _Challenge) -> None:
        if self._challenges.get(uid) is challenge:
            self._give_up_holder(uid)

    def disconnected(self, connection: Connection) -> None:
        """Drop the challenges of newcomers on a closed connection."""
        for uid in [uid for uid, c in self._challenges.items() if c.arrival.connection is connection]:
            self._end(uid)

    def close(self) -> None:
        """Cancel all challenges."""
        for uid in list(self._challenges):
            self._end(uid)
