"""Two agents under one instance_uid, told apart by what no upgrade changes: service.instance.id, and the sequence.

An agent that restarts, reconnects or is upgraded looks like another one for a moment. So a stranger is believed at first,
and only where both are heard in turns (A, B, A) it is certain that there are two: then the newcomer, B, is to get a uid of
its own.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

_MAX_SEQUENCE = (1 << 64) - 1
_STARTS = 1
"""Sequences up to this are those of a process that has just begun (clients begin at 0 or 1)."""


class Verdict(enum.Enum):
    """Who it is that speaks."""

    SAME = "same"
    """The agent that has the uid."""
    UNKNOWN = "unknown"
    """It does not say who it is, and its sequence does not go on: perhaps something was missed."""
    STRANGER = "stranger"
    """Another one than before, which has not been heard since."""
    RETURNED = "returned"
    """The one before the stranger: there are two, and this one was here first."""
    EITHER = "either"
    """One of two that may both be there, by its sequence: it has to say which, and nothing that it said counts."""
    NEWCOMER = "newcomer"
    """The other of two: it is to get another uid."""


@dataclass(slots=True)
class Speaker:
    """What one of two is known by."""

    instance_id: str
    """service.instance.id; empty where it says none."""
    sequence: int
    """Of its last message."""


class Contest:
    """The agent of one uid, and the other one that was heard under it."""

    __slots__ = ("_name", "_other", "settled")

    def __init__(self) -> None:
        self._other: Speaker | None = None
        self._name: str | None = None
        """The holder's service.instance.id, where it came back and what is known of it is still the other one's."""
        self.settled = False
        """There are two for certain, and the other one is the newcomer."""

    def hear(self, holder: Speaker, instance_id: str | None, sequence: int) -> Verdict:
        """Say who sent a message.

        Args:
            holder: the agent that has the uid.
            instance_id: what the message says; None where it has no description.
            sequence: of the message.
        """
        other = self._other
        name = holder.instance_id if self._name is None else self._name
        if instance_id and instance_id == name:
            return Verdict.SAME
        goes_on = _follows(sequence, holder.sequence)
        if instance_id:
            is_other = other is not None and instance_id == other.instance_id
            goes_on = goes_on and sequence > _STARTS and not is_other
        else:
            is_other = other is not None and _follows(sequence, other.sequence)
            if goes_on and is_other and instance_id is None:
                return Verdict.EITHER
        if goes_on:
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

    def replaced(self, holder: Speaker) -> None:
        """A stranger has the uid from now on; it was `holder`'s."""
        self._other, self.settled, self._name = holder, False, None

    def settle(self, newcomer: Speaker) -> None:
        """Both live: this one came later."""
        self._other, self.settled = newcomer, True


def goes_on_alone(sequence: int, last: int) -> bool:
    """Whether a message goes on after the one of sequence `last`: where no other was ever heard, it is of the same agent."""
    return sequence > _STARTS and _follows(sequence, last)


def _follows(sequence: int, last: int) -> bool:
    return sequence == (last + 1) & _MAX_SEQUENCE
