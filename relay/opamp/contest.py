"""Two agents with the same instance_uid, distinguished by what no upgrade changes: service.instance.id and the sequence.

An agent that restarts, reconnects or is upgraded looks like a different agent for a moment. So a stranger is believed at
first. Only when both are heard in turn (A, B, A) are there certainly two; then the newcomer, B, gets a uid of its own.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

_MAX_SEQUENCE = (1 << 64) - 1
_MAX_START_SEQUENCE = 1
"""A sequence up to this means that the process has just started (clients start at 0 or 1)."""


class Verdict(enum.Enum):
    """Who sent a message."""

    SAME = "same"
    """The agent that has the uid."""
    UNKNOWN = "unknown"
    """The sender does not identify itself and the sequence does not continue: perhaps a message was missed."""
    STRANGER = "stranger"
    """A different agent than before; the previous one has not been heard since."""
    RETURNED = "returned"
    """The agent from before the stranger: there are two, and this one was first."""
    EITHER = "either"
    """By its sequence, it may be either of two agents: it must identify itself, and the message is ignored."""
    NEWCOMER = "newcomer"
    """The later of two agents: it gets another uid."""


@dataclass(slots=True)
class Speaker:
    """What identifies one of the two agents."""

    instance_id: str
    """service.instance.id; empty if not reported."""
    sequence: int
    """Sequence of its last message."""


class Contest:
    """The agent that has a uid, and the other agent that was heard under it."""

    __slots__ = ("_name", "_other", "settled")

    def __init__(self) -> None:
        self._other: Speaker | None = None
        self._name: str | None = None
        """The holder's service.instance.id, if it returned while its record still describes the other agent."""
        self.settled = False
        """There are certainly two agents, and `_other` is the newcomer."""

    def hear(self, holder: Speaker, instance_id: str | None, sequence: int) -> Verdict:
        """Decide who sent a message.

        Args:
            holder: the agent that has the uid.
            instance_id: service.instance.id in the message; None if it has no description.
            sequence: sequence_num of the message.
        """
        other = self._other
        name = holder.instance_id if self._name is None else self._name
        if instance_id and instance_id == name:
            return Verdict.SAME
        continues = _follows(sequence, holder.sequence)
        if instance_id:
            is_other = other is not None and instance_id == other.instance_id
            continues = continues and sequence > _MAX_START_SEQUENCE and not is_other
        else:
            is_other = other is not None and _follows(sequence, other.sequence)
            if continues and is_other and instance_id is None:
                return Verdict.EITHER
        if continues:
            if instance_id and self._name is not None:
                self._name = instance_id
            return Verdict.SAME
        if is_other and not self.settled and other is not None:
            self.settle(Speaker(name, holder.sequence))
            self._name = other.instance_id
            return Verdict.RETURNED
        if self.settled and (is_other or instance_id):
            self._other = Speaker(instance_id or (other.instance_id if other is not None else ""), sequence)
            return Verdict.NEWCOMER
        return Verdict.STRANGER if instance_id else Verdict.UNKNOWN

    def replace_holder(self, holder: Speaker) -> None:
        """A stranger takes over the uid from `holder`."""
        self._other, self.settled, self._name = holder, False, None

    def settle(self, newcomer: Speaker) -> None:
        """Both agents exist, and `newcomer` came later."""
        self._other, self.settled = newcomer, True


def continues_sequence(sequence: int, last: int) -> bool:
    """Whether a message continues the sequence `last`. If no other agent was ever heard, the same agent sent it."""
    return sequence > _MAX_START_SEQUENCE and _follows(sequence, last)


def _follows(sequence: int, last: int) -> bool:
    return sequence == (last + 1) & _MAX_SEQUENCE
