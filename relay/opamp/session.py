"""The conversation with one agent: a report in, a reply out (spec: Communication Model, AgentToServer, ServerToAgent).

A session does not know its socket. `report` and `push` are synchronous and use local state only. Heartbeats are nearly all
of the traffic. The next message of an unchanged agent is known in advance, so `heartbeat` needs one comparison and returns
a fixed answer.

What the session decides:

- It requests full state after a message may have been missed: the agent is unknown, or the sequence does not continue. The
  answer replaces everything known about the agent. Requests are spaced out, whatever the agent sends (some clients answer
  each request immediately, others never).
- It offers a config while the agent's reported hash differs from the one that policy selects: once per session and
  config, again after a missed message, and a few times if a status names yet another hash; never a config that the agent
  reported as FAILED. The same holds for packages.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

from relay.opamp import body, capabilities
from relay.opamp.offer import Offer, WithheldSlot
from relay.opamp.outbox import Outbox
from relay.opamp.packages import PackagesOffer
from relay.opamp.record import Change, Credential, Record
from relay.pb.opamp.v1 import opamp_pb2 as pb

ASK_AGAIN_S = 30.0
"""The shortest time between two requests for full state; doubles with each unanswered request."""
MAX_ASK_DELAY_S = 600.0
OFFER_AGAIN_S = 30.0
"""An agent that keeps reporting another hash is offered the config again after this time."""

_REPEATS = 3
"""How often a status with yet another hash is answered with the same offer."""

_CAPABILITIES = body.capabilities_field(capabilities.SERVER)
_NOTHING = b""
"""Equals no message, because an agent always sends its uid."""


_SEQUENCE_FIELDS = [pb.AgentToServer(sequence_num=number).SerializeToString() for number in range(1 << 14)]
"""AgentToServer.sequence_num, encoded in advance for five days of heartbeats."""


_MAX_SEQUENCE = (1 << 64) - 1


def _sequence_field(number: int) -> bytes:
    if number < len(_SEQUENCE_FIELDS):
        return _SEQUENCE_FIELDS[number]
    return pb.AgentToServer(sequence_num=number).SerializeToString()


@functools.lru_cache(maxsize=64)
def _capabilities_field(bits: int) -> bytes:
    """AgentToServer.capabilities, encoded; a fleet has only a handful of different values."""
    return pb.AgentToServer(capabilities=bits).SerializeToString()


class Reply(NamedTuple):
    """The answer to one report."""

    body: bytes
    """A serialised ServerToAgent, never empty."""
    changes: int
    """Bits of `Change`."""
    effective_config: bytes | None = None
    """The serialised EffectiveConfig, if a new one was reported."""
    components: bytes | None = None
    """The serialised AvailableComponents, if a new list was reported."""
    new_uid: bytes | None = None
    """The uid that the agent requested and will use from its next message on."""
    predecessor: Record | None = None
    """The record of the same agent under another uid, whose memory was taken over."""


class Services:
    """What a node provides to its sessions: decisions, uids and request limits."""

    __slots__ = ("decide", "decide_packages", "fresh_uid", "may_ask", "packages_field", "predecessor", "withheld")

    def __init__(
        self,
        *,
        decide: Callable[[Record], Offer | None],
        decide_packages: Callable[[Record], PackagesOffer | None],
        packages_field: Callable[[Record, PackagesOffer], bytes],
        fresh_uid: Callable[[], bytes],
        may_ask: Callable[[float], bool],
        predecessor: Callable[[Record], Record | None],
        withheld: Callable[[Record], tuple[tuple[WithheldSlot, ...], tuple[WithheldSlot, ...]]],
    ) -> None:
        self.decide = decide
        """Returns the config that policy selects for a record, None for none."""
        self.decide_packages = decide_packages
        """Returns the packages that policy selects for a record and that can be downloaded now, None for none."""
        self.packages_field = packages_field
        """Encodes a packages offer with URLs that the agent can reach."""
        self.fresh_uid = fresh_uid
        """Returns a new UUIDv7."""
        self.may_ask = may_ask
        """Whether full state may be requested from one more agent now (all sessions of a node share the rate)."""
        self.predecessor = predecessor
        """Returns a record of the same agent under another uid that is no longer in use; None for none."""
        self.withheld = withheld
        """Returns the config slots and the package slots that policy selects for a record but that are not offered."""


class Session:
    """One agent on one connection; over HTTP, one agent. Behind a proxy, many sessions may share a connection.

    Args:
        record: the agent's record; only this session changes it.
        services: shared by all sessions of a node.
        header: precedes each message on this transport, in both directions; see `relay.opamp.frame`.
    """

    __slots__ = (
        "_ack",
        "_ask_after",
        "_ask_delay_s",
        "_asked",
        "_capabilities",
        "_expected",
        "_first",
        "_framed_ack",
        "_framed_uid",
        "_header",
        "_repeats",
        "_reported_before",
        "_services",
        "disconnected",
        "last_seen",
        "needs_full",
        "offered_at",
        "outbox",
        "packages_offered_at",
        "record",
        "sent_hash",
        "sent_packages_hash",
    )

    def __init__(self, record: Record, services: Services, header: bytes = b"") -> None:
        self.record = record
        self._header = header
        self.outbox = Outbox()
        self._services = services
        self._first = True
        """No message has been received in this session yet."""
        self._asked = False
        self._ask_after = 0.0
        self._ask_delay_s = ASK_AGAIN_S
        self.needs_full = False
        """A message may have been missed, and full state has not arrived since."""
        self.sent_hash = b""
        """config_hash of the config that this session last sent."""
        self._reported_before = b""
        """The hash that the agent had reported when that config was sent."""
        self._repeats = 0
        """How often that config was sent again because of a status."""
        self.sent_packages_hash = b""
        """all_packages_hash of the packages that this session last sent."""
        self.offered_at = self.packages_offered_at = 0.0
        self.last_seen = 0.0
        self.disconnected = False
        """The agent sent agent_disconnect."""
        self._precompute()

    def _precompute(self) -> None:
        self._ack = body.uid_field(self.record.instance_uid)
        self._framed_ack = self._framed_uid = self._header + self._ack  # the uid is the first field of both messages
        self._capabilities = _capabilities_field(self.record.capabilities)
        self._expected = _NOTHING

    def _expect(self) -> None:
        """Compute the next heartbeat, if a plain acknowledgement may answer it."""
        if self.outbox or self.needs_full or self.disconnected:
            self._expected = _NOTHING
        else:
            following = self.record.sequence_num + 1 & _MAX_SEQUENCE
            self._expected = self._framed_uid + _sequence_field(following) + self._capabilities

    @property
    def full_state_requested(self) -> bool:
        """Whether full state was requested in this session and has not arrived."""
        return self._asked

    # ---- in

    def heartbeat(self, message: bytes, now: float) -> bytes | None:
        """Answer a heartbeat: a report with the uid, the next sequence, unchanged capabilities and nothing else.

        Args:
            message: as received, with the transport's header.
            now: monotonic seconds.

        Returns:
            The fixed answer, header included; None if this is not a heartbeat and must go through `report`.
        """
        if message != self._expected:
            return None
        self.last_seen = now
        record = self.record
        number = record.sequence_num + 1
        record.sequence_num = number
        number += 1
        field = _SEQUENCE_FIELDS[number] if number < 16384 else _sequence_field(number & _MAX_SEQUENCE)
        self._expected = self._framed_uid + field + self._capabilities
        return self._framed_ack

    def report(self, message: pb.AgentToServer, now: float, credential: Credential | None = None) -> Reply:
        """Process one report and return its answer.

        Args:
            message: decoded by `body.decode`; its uid is this session's.
            now: monotonic seconds.
            credential: what the sender proved to be; None while the node asks for no credentials.
        """
        reply = self._report(message, now, credential)
        self._expect()
        return reply

    def _report(self, message: pb.AgentToServer, now: float, credential: Credential | None) -> Reply:
        record = self.record
        described = message.HasField("agent_description")
        if self.disconnected and not described:
            # A late message after agent_disconnect (several clients send one): answer it, but stay disconnected.
            record.sequence_num = message.sequence_num
            return Reply(self._ack, Change.NONE)
        restarted = described and message.sequence_num <= 1
        previous_id = record.agent_id
        missed = message.sequence_num != record.sequence_num + 1 or not record.sequence_exact
        full = described and (self._asked or self._first or restarted)
        changes = Change.CONNECT if self._first or self.disconnected else Change.NONE
        self.disconnected = False
        changes |= record.adopt(credential)
        merged = record.merge(message, full=full)
        changes |= merged.changes
        old = self._services.predecessor(record) if record.agent_id != previous_id else None
        if old is not None:
            record.inherit(old)
        if restarted and self._first:
            record.note_restart()
        record.sequence_num = message.sequence_num
        record.sequence_exact = True
        self.last_seen = now
        if changes & Change.CAPABILITIES:
            self._capabilities = _capabilities_field(record.capabilities)
        if full:
            self.needs_full = self._asked = False
            self._ask_delay_s = ASK_AGAIN_S
        elif missed or not record.agent_description:
            self.needs_full = True
        if missed and not self._first:
            self.sent_hash = self.sent_packages_hash = b""  # the last offer may be what was lost
        if message.HasField("agent_disconnect"):
            self.disconnected = True
            changes |= Change.DISCONNECT
            return Reply(self._ack, changes, merged.effective_config, merged.components, predecessor=old)
        if message.flags & pb.AgentToServerFlags_RequestInstanceUid:
            self.outbox.new_uid = self._services.fresh_uid()
        if self.needs_full:
            self._ask(now)
        self._ask_for_components(message)
        changes |= self.consider(
            now,
            mismatch=message.HasField("remote_config_status"),
            packages_mismatch=message.HasField("package_statuses"),
        )
        new_uid = self.outbox.new_uid
        parts = self._ack + self._take() if self.outbox else self._ack
        if self._first:
            self._first = False
            parts += _CAPABILITIES
        return Reply(parts, changes, merged.effective_config, merged.components, new_uid, old)

    def _ask_for_components(self, message: pb.AgentToServer) -> None:
        """Request the component list: a report with a new hash usually omits it."""
        record = self.record
        if (
            not message.HasField("available_components")
            or record.components_digest
            or message.available_components.components
        ):
            return
        if record.capabilities & capabilities.REPORTS_AVAILABLE_COMPONENTS:
            self.outbox.components = True

    # ---- out

    def consider(self, now: float, *, mismatch: bool = False, packages_mismatch: bool = False) -> int:
        """Put the config and the packages that policy selects into the outbox, if they should be sent.

        Args:
            now: monotonic seconds.
            mismatch: the agent just reported its config status, so an earlier offer may have been lost.
            packages_mismatch: the same for packages.

        Returns:
            OFFERED and PACKAGES_OFFERED for new offers; OTHER if only the memory of an offer changed.
        """
        record = self.record
        if not record.agent_id or self.disconnected:
            return Change.NONE
        changes = Change.NONE
        configs, packages = self._services.withheld(record)
        for offering, withheld in ((record.config, configs), (record.packages, packages)):
            if offering is not None and offering.withheld != withheld:
                offering.withheld = withheld
                changes |= Change.OTHER
        if record.capabilities & capabilities.ACCEPTS_REMOTE_CONFIG:
            changes |= self._consider_config(record, now, mismatch)
        if record.capabilities & capabilities.ACCEPTS_PACKAGES:
            changes |= self._consider_packages(record, now, packages_mismatch)
        return changes

    def _consider_config(self, record: Record, now: float, mismatch: bool) -> int:
        offer = self._services.decide(record)
        if offer is None:
            self._withdraw()
            return Change.NONE
        selected = offer.config_hash
        if record.capabilities & capabilities.REPORTS_REMOTE_CONFIG:
            reported = record.config_status().last_remote_config_hash
            if record.config.failed_hash == selected:
                self._withdraw()
                if not record.note_earlier_failure(selected, offer.slots):
                    return Change.NONE
                # The agent arrived with a failure of this config: decide again, knowing that.
                record.config.withheld, _ = self._services.withheld(record)
                return Change.OTHER | self._consider_config(record, now, mismatch)
            if reported == selected and (self.outbox.offer is not None or self.sent_hash in (b"", selected)):
                self._withdraw()
                return self._remember(offer, held=True)
            # Otherwise another config was sent since. The agent may be about to apply that, so its report may be outdated.
        if self.sent_hash != selected:
            self._reported_before, self._repeats = record.config_status().last_remote_config_hash, 0
        elif not (mismatch and self._is_due(record, now)):
            return Change.NONE
        self.outbox.offer = offer
        self._expected = _NOTHING
        self.sent_hash = selected
        self.offered_at = now
        self._remember(offer)
        return Change.OFFERED

    def _is_due(self, record: Record, now: float) -> bool:
        """Whether a status with another hash needs the offer again (spec: remote_config MUST be included).

        If it has the hash from before the offer, not at once: the agent may have sent it before the offer arrived.
        """
        if record.config_status().last_remote_config_hash != self._reported_before and self._repeats < _REPEATS:
            self._repeats += 1
            return True
        return now - self.offered_at >= OFFER_AGAIN_S

    def _consider_packages(self, record: Record, now: float, mismatch: bool) -> int:
        offer = self._services.decide_packages(record)
        if offer is None:
            self._withdraw_packages()
            return Change.NONE
        selected, offering = offer.hash, record.packages
        again = offering is not None and offering.should_retry and offering.hash == selected
        if record.capabilities & capabilities.REPORTS_PACKAGE_STATUSES and not again:
            if offering is not None and offering.failed_hash == selected:
                self._withdraw_packages()
                return Change.NONE
            if record.packages_reported() == selected and (
                self.outbox.packages is not None or self.sent_packages_hash in (b"", selected)
            ):
                self._withdraw_packages()
                return Change.OTHER if record.offer_packages(offer, held=True) else Change.NONE
        overdue = mismatch and now - self.packages_offered_at >= OFFER_AGAIN_S
        if self.sent_packages_hash == selected and not again and not overdue:
            return Change.NONE
        self.outbox.packages = offer
        self._expected = _NOTHING
        self.sent_packages_hash = selected
        self.packages_offered_at = now
        record.offer_packages(offer)
        return Change.PACKAGES_OFFERED

    def _withdraw_packages(self) -> None:
        if self.outbox.packages is not None:
            self.outbox.packages = None
            self.sent_packages_hash = b""

    def _take(self) -> bytes:
        """Empty the outbox."""
        return self.outbox.take(self._packages_field)

    def _packages_field(self, offer: PackagesOffer) -> bytes:
        record = self.record
        if record.packages is not None:
            record.packages.mark_sent(record.package_statuses)
        return self._services.packages_field(record, offer)

    def _withdraw(self) -> None:
        """Remove an unsent offer from the outbox, so that it does not count as sent."""
        if self.outbox.offer is not None:
            self.outbox.offer = None
            self.sent_hash = b""

    def _remember(self, offer: Offer, *, held: bool = False) -> int:
        changed = self.record.offer_config(offer.config_hash, offer.slots, held=held)
        return Change.OTHER if changed else Change.NONE

    def push(self, now: float) -> bytes | None:
        """The message to send without a request, or None. Only for connections that allow pushing."""
        if self.needs_full and not self.disconnected:
            self._ask(now)
        if not self.outbox:
            return None
        content = self._ack + self._take()
        self._expect()
        return content

    def request_full_state_now(self) -> None:
        """Request full state without delay: the next message may come from a different agent."""
        self.needs_full, self._ask_after = True, 0.0

    def _ask(self, now: float) -> None:
        if now >= self._ask_after and self._services.may_ask(now):
            self.outbox.full_state = True
            self._asked = True
            self._ask_after = now + self._ask_delay_s
            self._ask_delay_s = min(2 * self._ask_delay_s, MAX_ASK_DELAY_S)
