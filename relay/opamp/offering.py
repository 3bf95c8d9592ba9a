"""The last offer of one kind to an agent, and its outcome. This memory prevents a failed offer from being repeated.

An agent has one for its config and one for its packages. Nothing here depends on the kind: contents are compared by hash.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable

from relay.opamp.offer import Failure, OfferedSlot, WithheldSlot
from relay.pb.relay.v1 import link_pb2

_REASON_CHARS = 1000
_MAX_FAILURES = 256
"""More than any agent has slots: a forgotten failure would be offered again and again."""
_RESTARTS_TO_FAIL = 2
APPLIED, APPLYING, FAILED = "APPLIED", "APPLYING", "FAILED"


class Offering:
    """The last offer of one kind. The agent sees `hash`; `slots` lists the contents behind it."""

    __slots__ = (
        "applied",
        "baseline",
        "failed_hash",
        "failures",
        "hash",
        "offered_at_ms",
        "previous",
        "restarts",
        "slots",
        "status",
        "withheld",
    )

    def __init__(self) -> None:
        self.hash = b""
        self.slots: tuple[OfferedSlot, ...] = ()
        self.previous: tuple[bytes, tuple[OfferedSlot, ...]] = (b"", ())
        """Hash and slots of the previous offer: a status for it may arrive late."""
        self.offered_at_ms = 0
        """0 until the owner calls `stamp`."""
        self.baseline: tuple[bool | None, ...] = ()
        """The agent's health before each slot's content was offered, in the order of `slots`."""
        self.restarts = 0
        """How often the agent's process restarted while the offer was undecided."""
        self.applied: tuple[OfferedSlot, ...] = ()
        """The slots of the offer that the agent last reported as APPLIED."""
        self.failures: tuple[Failure, ...] = ()
        """Contents that the agent could not apply, the newest last."""
        self.failed_hash = b""
        """The last hash that the agent reported as FAILED; it is not offered again."""
        self.status = ""
        """The agent's status for `hash`: APPLIED, APPLYING or FAILED; empty if it reported none."""
        self.withheld: tuple[WithheldSlot, ...] = ()
        """Contents that policy selects but that are not offered."""

    @property
    def failure(self) -> Failure | None:
        """The failure that caused content to be withheld; None if there is none."""
        if not self.withheld:
            return None
        keys = {(w.slot, w.content_hash) for w in self.withheld if w.content_hash}
        return next((f for f in reversed(self.failures) if (f.slot, f.content_hash) in keys), None)

    def offer(self, hash_: bytes, slots: tuple[OfferedSlot, ...], healthy: bool | None, *, held: bool = False) -> bool:
        """Record an offer, or that the agent already has it. Returns False if nothing changed.

        Args:
            hash_: the hash that the agent sees.
            slots: the contents of the offer.
            healthy: the agent's health now.
            held: the agent already has it and, as far as we know, did not get it from us.
        """
        if self.hash == hash_ and self.slots == slots:
            return False
        # An unchanged slot keeps its baseline: its content may have cost the agent its health since. For content that we
        # never gave to the agent, the health before is unknown.
        baselines = {slot[:3]: health for slot, health in zip(self.slots, self.baseline, strict=True)}
        self.baseline = tuple(baselines.get(slot[:3], None if held else healthy) for slot in slots)
        if self.hash != hash_:
            self.previous = (self.hash, self.slots)
            self.offered_at_ms, self.restarts, self.status = 0, 0, ""
        self.hash, self.slots = hash_, slots
        return True

    def take_status(self, hash_: bytes, status: str, reason: str) -> None:
        """Process the agent's status for an offer.

        A later APPLIED for the same hash does not clear a failure: opampsupervisor sends one for a config that failed
        within the settling time of the previous config.
        """
        if status == FAILED:
            self.failed_hash = hash_
            self.status = FAILED if hash_ == self.hash else ""
            if hash_ == self.hash:
                self.fail(self.slots, reason)
            elif hash_ == self.previous[0]:
                self.fail(self.previous[1], reason)
        else:
            self.update_status(hash_, status)

    def update_status(self, hash_: bytes, status: str) -> None:
        """Set the status if it is for the current offer, else clear it."""
        self.status = status if hash_ == self.hash else ""
        if self.status == APPLIED:
            self.applied, self.restarts = self.slots, 0

    def fail(self, slots: tuple[OfferedSlot, ...], reason: str) -> None:
        """Record a failed offer. Blames the slots that differ from what was last applied, or all if none differ.

        The owner sets `at_ms` with `stamp`.
        """
        self._blame(self._differing(slots) or slots, reason)

    def _differing(self, slots: tuple[OfferedSlot, ...]) -> tuple[OfferedSlot, ...]:
        running = {slot.slot: slot.content_hash for slot in self.applied}
        return tuple(s for s in slots if running.get(s.slot) != s.content_hash)

    def _blame(self, slots: tuple[OfferedSlot, ...], reason: str) -> None:
        fresh = [Failure(s.slot, s.content_hash, s.retry, reason[:_REASON_CHARS], 0) for s in slots]
        keys = {failure[:2] for failure in fresh}
        self.failures = (*(f for f in self.failures if f[:2] not in keys), *fresh)[-_MAX_FAILURES:]
        self.restarts = 0

    def forgive(self, contents: Collection[bytes]) -> bool:
        """Mark failures of these contents as not the contents' fault. Returns whether there were any."""
        failed = tuple(f._replace(forgiven=True) if f.content_hash in contents else f for f in self.failures)
        if failed == self.failures:
            return False
        self.failures, self.failed_hash = failed, b""
        return True

    @property
    def undecided(self) -> bool:
        """Whether the agent has neither applied the current offer nor failed to."""
        return bool(self.slots) and self.failed_hash != self.hash and self.status not in (APPLIED, FAILED)

    def note_restart(self) -> bool:
        """Record a restart of the agent's process. A second restart with the offer undecided makes the offer a failure.

        Returns:
            Whether the offer has failed.
        """
        suspects = self._differing(self.slots)  # contents that ran before are not the cause
        if not suspects or not self.undecided:
            return False
        self.restarts += 1
        if self.restarts < _RESTARTS_TO_FAIL:
            return False
        self.failed_hash = self.hash
        self._blame(suspects, f"restarted {_RESTARTS_TO_FAIL} times without applying it")
        return True

    def inherit(self, old: Offering) -> None:
        """Take over the memory of the same agent under another instance_uid."""
        for name in Offering.__slots__:
            if name != "previous":
                setattr(self, name, getattr(old, name))

    def keep_baseline(self, old: Offering) -> None:
        """Fill unknown baselines from another node's memory of the same agent."""
        baselines = {slot[:3]: health for slot, health in zip(old.slots, old.baseline, strict=True)}
        self.baseline = tuple(
            baselines.get(slot[:3]) if health is None else health
            for slot, health in zip(self.slots, self.baseline, strict=True)
        )

    @property
    def needs_stamp(self) -> bool:
        """Whether `stamp` has something to date."""
        return bool((self.slots and not self.offered_at_ms) or (self.failures and not self.failures[-1].at_ms))

    def stamp(self, now_ms: int) -> None:
        """Set the missing times of the offer and the failures."""
        if self.slots and not self.offered_at_ms:
            self.offered_at_ms = now_ms
        self.failures = tuple(f if f.at_ms else f._replace(at_ms=now_ms) for f in self.failures)

    def message(self) -> link_pb2.Offering:
        """The message that is reported and stored."""
        message = link_pb2.Offering()
        message.CopyFrom(_common(self.hash, self.slots, self.baseline, self.status, self.applied))
        message.offered_at_unix_ms = self.offered_at_ms
        for f in self.failures:
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
        """Restore from `message`."""
        self.hash = message.hash
        self.slots = slots_of(message.slots)
        self.status = message.status
        self.applied = slots_of(message.applied)
        self.offered_at_ms = message.offered_at_unix_ms
        self.baseline = tuple(m.healthy_before if m.HasField("healthy_before") else None for m in message.slots)
        self.failures = failures_of(message.failed)
        self.withheld = tuple(WithheldSlot(w.slot, w.assignment, w.content_hash, w.reason) for w in message.withheld)


@functools.lru_cache(maxsize=4096)
def _common(
    hash_: bytes,
    slots: tuple[OfferedSlot, ...],
    baseline: tuple[bool | None, ...],
    status: str,
    applied: tuple[OfferedSlot, ...],
) -> link_pb2.Offering:
    """The part that thousands of agents share, built once. Copy it; never modify it."""
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
    """Convert messages to slots."""
    return tuple(OfferedSlot(m.slot, m.assignment, m.content_hash, m.retry) for m in messages)


def failures_of(messages: Iterable[link_pb2.FailedContent]) -> tuple[Failure, ...]:
    """Convert messages to failures."""
    return tuple(Failure(m.slot, m.content_hash, m.retry, m.error_message, m.at_unix_ms, m.forgiven) for m in messages)
