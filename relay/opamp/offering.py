"""What an agent was offered of one kind, and what became of it: the memory that keeps a failed offer from coming again.

There is one for the agent's config and one for its packages. Nothing here knows which: contents are told apart by hash.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable

from relay.opamp.offer import Failure, OfferedSlot, WithheldSlot
from relay.pb.relay.v1 import link_pb2

_REASON_CHARS = 1000
_MAX_FAILURES = 256
"""More than any agent has slots: one that forgets what failed would offer it again and again."""
_MAX_RESTARTS = 2
APPLIED, APPLYING, FAILED = "APPLIED", "APPLYING", "FAILED"


class Offering:
    """The last offer of one kind. `hash` is what the agent sees; `slots` what it is made of."""

    __slots__ = (
        "applied",
        "baseline",
        "before",
        "failed",
        "failed_hash",
        "hash",
        "offered_at_ms",
        "restarts",
        "slots",
        "status",
        "withheld",
    )

    def __init__(self) -> None:
        self.hash = b""
        self.slots: tuple[OfferedSlot, ...] = ()
        self.before: tuple[bytes, tuple[OfferedSlot, ...]] = (b"", ())
        """Hash and slots of the offer before: what is said of it may come late."""
        self.offered_at_ms = 0
        """0 until the owner has stamped it."""
        self.baseline: tuple[bool | None, ...] = ()
        """The agent's health before each slot's content was offered to it, in the order of `slots`."""
        self.restarts = 0
        """How often its process began anew with the offer undecided."""
        self.applied: tuple[OfferedSlot, ...] = ()
        """What was offered when it last said APPLIED."""
        self.failed: tuple[Failure, ...] = ()
        """What it could not apply, the newest last."""
        self.failed_hash = b""
        """The last hash that the agent reported FAILED: not offered again."""
        self.status = ""
        """What it says of `hash`: APPLIED, APPLYING, FAILED; empty for nothing."""
        self.withheld: tuple[WithheldSlot, ...] = ()
        """What it should have, and is not offered."""

    @property
    def failure(self) -> Failure | None:
        """The failure for which it has not what it should have; None where there is none."""
        if not self.withheld:
            return None
        keys = {(w.slot, w.content_hash) for w in self.withheld if w.content_hash}
        return next((f for f in reversed(self.failed) if (f.slot, f.content_hash) in keys), None)

    def offer(self, hash_: bytes, slots: tuple[OfferedSlot, ...], healthy: bool | None, *, held: bool = False) -> bool:
        """It is offered something, or has it already. False where nothing is new of that.

        Args:
            healthy: the agent's health now.
            held: it has it already, and did not get it from us as far as we know.
        """
        if self.hash == hash_ and self.slots == slots:
            return False
        # Health that an agent lost on what it keeps is not its health before what else it gets. Who comes with a content
        # that we never gave it had a health before that nobody here knows.
        known = {slot[:3]: health for slot, health in zip(self.slots, self.baseline, strict=True)}
        self.baseline = tuple(known.get(slot[:3], None if held else healthy) for slot in slots)
        if self.hash != hash_:
            self.before = (self.hash, self.slots)
            self.offered_at_ms, self.restarts, self.status = 0, 0, ""
        self.hash, self.slots = hash_, slots
        return True

    def said(self, hash_: bytes, status: str, reason: str) -> None:
        """Take what the agent says of something that it was offered.

        A failure is not undone by a later APPLIED of the same hash: opampsupervisor sends one for a config that failed
        within the settling time of the one before.
        """
        if status == FAILED:
            self.failed_hash = hash_
            self.status = FAILED if hash_ == self.hash else ""
            if hash_ == self.hash:
                self.fail(self.slots, reason)
            elif hash_ == self.before[0]:
                self.fail(self.before[1], reason)
        else:
            self.compare(hash_, status)

    def compare(self, hash_: bytes, status: str) -> None:
        """Take what it says now of something that it may have been offered, if that is the offer."""
        self.status = status if hash_ == self.hash else ""
        if self.status == APPLIED:
            self.applied, self.restarts = self.slots, 0

    def fail(self, slots: tuple[OfferedSlot, ...], reason: str) -> None:
        """What was offered could not be applied: blame the slots that differ from what it last applied, else all.

        The owner stamps `at_ms`.
        """
        self._blame(self._differing(slots) or slots, reason)

    def _differing(self, slots: tuple[OfferedSlot, ...]) -> tuple[OfferedSlot, ...]:
        running = {slot.slot: slot.content_hash for slot in self.applied}
        return tuple(s for s in slots if running.get(s.slot) != s.content_hash)

    def _blame(self, slots: tuple[OfferedSlot, ...], reason: str) -> None:
        fresh = [Failure(s.slot, s.content_hash, s.retry, reason[:_REASON_CHARS], 0) for s in slots]
        keys = {failure[:2] for failure in fresh}
        self.failed = (*(f for f in self.failed if f[:2] not in keys), *fresh)[-_MAX_FAILURES:]
        self.restarts = 0

    def forgive(self, contents: Collection[bytes]) -> bool:
        """Failures at some contents were no fault of theirs. Returns whether there were any."""
        failed = tuple(f._replace(forgiven=True) if f.content_hash in contents else f for f in self.failed)
        if failed == self.failed:
            return False
        self.failed, self.failed_hash = failed, b""
        return True

    @property
    def undecided(self) -> bool:
        """Whether it was offered something and has neither applied it nor failed at it."""
        return bool(self.slots) and self.failed_hash != self.hash and self.status not in (APPLIED, FAILED)

    def began_anew(self) -> bool:
        """Its process started again. Twice with an offer undecided: it cannot live with what it was offered.

        Returns:
            Whether that was the second time.
        """
        suspects = self._differing(self.slots)  # what it ran before is not what it dies of
        if not suspects or not self.undecided:
            return False
        self.restarts += 1
        if self.restarts < _MAX_RESTARTS:
            return False
        self.failed_hash = self.hash
        self._blame(suspects, f"restarted {_MAX_RESTARTS} times without applying it")
        return True

    def inherit(self, old: Offering) -> None:
        """Take over what is remembered of the same agent under another instance_uid."""
        for name in Offering.__slots__:
            if name != "before":
                setattr(self, name, getattr(old, name))

    def keep_baseline(self, old: Offering) -> None:
        """Take over the health before an offer that another node knows of the same agent, where this one does not."""
        known = {slot[:3]: health for slot, health in zip(old.slots, old.baseline, strict=True)}
        self.baseline = tuple(
            known.get(slot[:3]) if health is None else health
            for slot, health in zip(self.slots, self.baseline, strict=True)
        )

    @property
    def undated(self) -> bool:
        """Whether the owner has yet to stamp something."""
        return bool((self.slots and not self.offered_at_ms) or (self.failed and not self.failed[-1].at_ms))

    def stamp(self, now_ms: int) -> None:
        """Date what has no date."""
        if self.slots and not self.offered_at_ms:
            self.offered_at_ms = now_ms
        self.failed = tuple(f if f.at_ms else f._replace(at_ms=now_ms) for f in self.failed)

    def message(self) -> link_pb2.Offering:
        """What goes up of it, and into the store."""
        message = link_pb2.Offering()
        message.CopyFrom(_common(self.hash, self.slots, self.baseline, self.status, self.applied))
        message.offered_at_unix_ms = self.offered_at_ms
        for f in self.failed:
            message.failed.add(
                slot=f.slot,
                content_hash=f.content_hash,
                retry=f.retry,
                error_message=f.error_message,
                at_unix_ms=f.at_ms,
                forgiven=f.forgiven,
            )
        for w in self.withheld:
            message.withheld.add(**w._asdict())
        return message

    def take(self, message: link_pb2.Offering) -> None:
        """Undo `message`."""
        self.hash = message.hash
        self.slots = slots_of(message.slots)
        self.status = message.status
        self.applied = slots_of(message.applied)
        self.offered_at_ms = message.offered_at_unix_ms
        self.baseline = tuple(m.healthy_before if m.HasField("healthy_before") else None for m in message.slots)
        self.failed = failures_of(message.failed)
        self.withheld = tuple(WithheldSlot(w.slot, w.assignment, w.content_hash, w.reason) for w in message.withheld)


@functools.lru_cache(maxsize=4096)
def _common(
    hash_: bytes,
    slots: tuple[OfferedSlot, ...],
    baseline: tuple[bool | None, ...],
    status: str,
    applied: tuple[OfferedSlot, ...],
) -> link_pb2.Offering:
    """What thousands of agents have in common, made once; to be copied only."""
    return link_pb2.Offering(
        hash=hash_,
        slots=[
            link_pb2.OfferedSlot(**slot._asdict(), healthy_before=health)
            for slot, health in zip(slots, baseline, strict=True)
        ],
        status=status,
        applied=[link_pb2.OfferedSlot(**slot._asdict()) for slot in applied],
    )


def slots_of(messages: Iterable[link_pb2.OfferedSlot]) -> tuple[OfferedSlot, ...]:
    """As they are kept."""
    return tuple(OfferedSlot(m.slot, m.assignment, m.content_hash, m.retry) for m in messages)


def failures_of(messages: Iterable[link_pb2.FailedContent]) -> tuple[Failure, ...]:
    """As they are kept."""
    return tuple(Failure(m.slot, m.content_hash, m.retry, m.error_message, m.at_unix_ms, m.forgiven) for m in messages)
