"""An agent put together from compressed reports (spec: Agent Status Compression).

Sub-messages are kept as the bytes that came: fields that this schema does not know survive, and ten thousand records
are small. Who wants to look inside parses.
"""

from __future__ import annotations

from collections.abc import Iterable

from relay.ids import AgentId, ConfigHash, InstanceUid, sha256
from relay.opamp import body, capabilities, identity
from relay.opamp.offer import Failure, OfferedSlot
from relay.pb.opamp.v1 import opamp_pb2 as pb
from relay.pb.relay.v1 import link_pb2


class Change:
    """What a report changed, as bits of an int. NONE is a heartbeat.

    Plain ints: operations on enum.IntFlag were a tenth of the time that a connecting agent costs.
    """

    NONE = 0
    DESCRIPTION = 1
    CAPABILITIES = 2
    HEALTH = 4
    CONFIG_STATUS = 8
    EFFECTIVE_CONFIG = 16
    OTHER = 32
    DISCONNECT = 64
    OFFERED = 128
    CONNECT = 256
    COMPONENTS = 512


_KEPT = (
    ("health", Change.HEALTH),
    ("remote_config_status", Change.CONFIG_STATUS),
    ("package_statuses", Change.OTHER),
    ("custom_capabilities", Change.OTHER),
    ("connection_settings_status", Change.OTHER),
)
"""Sub-messages that are kept as bytes under their own name."""


_REASON_CHARS = 1000
_MAX_FAILURES = 8
_MAX_RESTARTS = 2


class Record:
    """What is known of one agent. Owned by the node's registry; changed only through `merge` and by that owner."""

    __slots__ = (
        "agent_description",
        "agent_id",
        "applied",
        "available_components",
        "capabilities",
        "cohort",
        "components_digest",
        "connected",
        "connection_settings_status",
        "counted",
        "custom_capabilities",
        "digest",
        "effective_config_digest",
        "failed",
        "failed_hash",
        "first_seen_ms",
        "health",
        "healthy_before",
        "instance_uid",
        "last_change_ms",
        "last_seen_ms",
        "offered_at_ms",
        "offered_before",
        "offered_hash",
        "offers",
        "package_statuses",
        "remote_config_status",
        "restarts",
        "sequence_exact",
        "sequence_num",
        "session_started_ms",
        "transport",
        "unknown_fields",
    )

    def __init__(self, instance_uid: InstanceUid, first_seen_ms: int) -> None:
        self.instance_uid = instance_uid
        self.agent_id = AgentId("")
        """Empty until a description is known."""
        self.sequence_num = -1
        self.sequence_exact = True
        """False for a record from disk whose sequence may have moved on since it was written."""
        self.capabilities = 0
        self.agent_description = b""
        # A sub-message that was never reported is None, one that was reported empty (`health {}`: unhealthy) is b"".
        self.health: bytes | None = None
        self.remote_config_status: bytes | None = None
        self.package_statuses: bytes | None = None
        self.custom_capabilities: bytes | None = None
        self.available_components: bytes | None = None
        self.connection_settings_status: bytes | None = None
        self.effective_config_digest = b""
        self.components_digest = b""
        """Of the list that belongs to `available_components`, which holds its hash alone; empty until it was sent."""
        self.unknown_fields = b""
        self.offered_hash = ConfigHash(b"")
        self.failed_hash = b""
        """The last config_hash that the agent reported FAILED: not offered again."""
        self.offers: tuple[OfferedSlot, ...] = ()
        """What `offered_hash` is made of."""
        self.offered_before: tuple[bytes, tuple[OfferedSlot, ...]] = (b"", ())
        """Hash and slots of the offer before: what is said of it may come late."""
        self.offered_at_ms = 0
        """0 until the owner has stamped it."""
        self.healthy_before: bool | None = None
        """Its health when that was offered."""
        self.restarts = 0
        """How often its process began anew with the offer undecided."""
        self.applied: tuple[OfferedSlot, ...] = ()
        """What was offered when it last said APPLIED."""
        self.failed: tuple[Failure, ...] = ()
        """What it could not apply, the newest last."""
        self.connected = False
        self.transport = ""
        self.first_seen_ms = first_seen_ms
        self.last_change_ms = first_seen_ms
        self.session_started_ms = 0
        self.last_seen_ms = first_seen_ms
        self.digest = 0
        """Of the state last counted in the node's shards; see `relay.fleet.shards`."""
        self.counted: object = None
        """The class last counted in the node's roll-up; see `relay.fleet.rollup`."""
        self.cohort: object = None
        """See `relay.fleet.cohort`, which sets it; None where it must be found anew."""

    def merge(self, message: pb.AgentToServer, *, full: bool) -> int:
        """Take over what a report carries; with `full`, what it leaves out is forgotten.

        Returns:
            Bits of `Change`. `effective_config` is reduced to its digest here; the caller keeps the body.
        """
        changes = Change.NONE
        if message.capabilities and message.capabilities != self.capabilities:
            self.capabilities = message.capabilities
            changes |= Change.CAPABILITIES
        if message.HasField("agent_description"):
            description = message.agent_description.SerializeToString(deterministic=True)
            if description != self.agent_description:
                self.agent_description = description
                self.agent_id = identity.agent_id(message.agent_description, self.instance_uid)
                changes |= Change.DESCRIPTION
        for name, change in _KEPT:
            if message.HasField(name):
                value = getattr(message, name).SerializeToString(deterministic=True)
            elif full:
                value = None
            else:
                continue
            if value != getattr(self, name):
                setattr(self, name, value)
                changes |= change
        if message.HasField("effective_config"):
            digest = sha256(message.effective_config.SerializeToString(deterministic=True))
            if digest != self.effective_config_digest:
                self.effective_config_digest = digest
                changes |= Change.EFFECTIVE_CONFIG
        elif full and self.effective_config_digest:
            self.effective_config_digest = b""
            changes |= Change.EFFECTIVE_CONFIG
        changes |= self._merge_components(message, full=full)
        unknown = body.unknown_fields(message)
        if unknown != self.unknown_fields and (unknown or full):
            self.unknown_fields = unknown
            changes |= Change.OTHER
        if changes & (Change.DESCRIPTION | Change.CAPABILITIES):
            self.cohort = None
        if changes & Change.CONFIG_STATUS:
            self._take_status()
        return changes

    def _merge_components(self, message: pb.AgentToServer, *, full: bool) -> int:
        if not message.HasField("available_components"):
            if not full or self.available_components is None:
                return Change.NONE
            self.available_components, self.components_digest = None, b""
            return Change.OTHER
        reported = message.available_components
        known = pb.AvailableComponents(hash=reported.hash).SerializeToString()
        changes = Change.NONE
        if known != self.available_components:
            self.available_components, self.components_digest = known, b""
            changes = Change.OTHER
        if reported.components:
            digest = sha256(reported.SerializeToString(deterministic=True))
            if digest != self.components_digest:
                self.components_digest = digest
                changes |= Change.COMPONENTS
        return changes

    def _take_status(self) -> None:
        # A failure is not undone by a later APPLIED of the same hash: opampsupervisor sends one for a config that failed
        # within the settling time of the one before.
        status = self.config_status()
        said = status.last_remote_config_hash
        if status.status == pb.RemoteConfigStatuses_FAILED:
            self.failed_hash = said
            if said == self.offered_hash:
                self.fail(self.offers, status.error_message)
            elif said == self.offered_before[0]:
                self.fail(self.offered_before[1], status.error_message)
        else:
            self.compare_status()

    def compare_status(self) -> None:
        """Remember what it is made of, if what it says to have applied is what was offered."""
        status = self.config_status()
        applied = status.status == pb.RemoteConfigStatuses_APPLIED
        if applied and status.last_remote_config_hash == self.offered_hash:
            self.applied, self.restarts = self.offers, 0

    def fail(self, offers: tuple[OfferedSlot, ...], reason: str) -> None:
        """What was offered could not be applied: blame the slots that differ from what it last applied, else all.

        The owner stamps `at_ms`.
        """
        self._blame(self._differing(offers) or offers, reason)

    def _differing(self, offers: tuple[OfferedSlot, ...]) -> tuple[OfferedSlot, ...]:
        running = {slot.slot: slot.content_hash for slot in self.applied}
        return tuple(s for s in offers if running.get(s.slot) != s.content_hash)

    def _blame(self, slots: tuple[OfferedSlot, ...], reason: str) -> None:
        fresh = [Failure(s.slot, s.content_hash, s.retry, reason[:_REASON_CHARS], 0) for s in slots]
        keys = {failure[:2] for failure in fresh}
        self.failed = (*(f for f in self.failed if f[:2] not in keys), *fresh)[-_MAX_FAILURES:]
        self.restarts = 0
        self.cohort = None

    @property
    def undecided(self) -> bool:
        """Whether it was offered something and has neither applied it nor failed at it."""
        if not self.offers or self.failed_hash == self.offered_hash:
            return False
        status = self.config_status()
        decided = status.status in (pb.RemoteConfigStatuses_APPLIED, pb.RemoteConfigStatuses_FAILED)
        return status.last_remote_config_hash != self.offered_hash or not decided

    def began_anew(self) -> None:
        """Its process started again. Twice with an offer undecided: it cannot live with what it was offered."""
        suspects = self._differing(self.offers)
        # What it ran before is not what it dies of; and who never tells of configs cannot be judged by silence.
        if not suspects or not self.undecided or not self.capabilities & capabilities.REPORTS_REMOTE_CONFIG:
            return
        self.restarts += 1
        if self.restarts >= _MAX_RESTARTS:
            self.failed_hash = self.offered_hash
            self._blame(suspects, f"restarted {_MAX_RESTARTS} times without applying it")

    def inherit(self, old: Record) -> None:
        """Take over what is remembered of the same agent under another instance_uid."""
        for name in ("first_seen_ms", "offered_hash", "failed_hash", "offers", "offered_at_ms", "healthy_before"):
            setattr(self, name, getattr(old, name))
        self.restarts, self.applied, self.failed = old.restarts, old.applied, old.failed
        self.cohort = None
        if self.remote_config_status is not None:
            self._take_status()

    def config_status(self) -> pb.RemoteConfigStatus:
        """The last RemoteConfigStatus, parsed; UNSET where none was reported."""
        return pb.RemoteConfigStatus.FromString(self.remote_config_status or b"")

    def healthy(self) -> bool | None:
        """The agent's own health; None where it reported none."""
        return None if self.health is None else pb.ComponentHealth.FromString(self.health).healthy

    def state(self) -> bytes:
        """A serialised AgentState: what goes up and into the store. Sequence and `last_seen` are not part of it."""
        return link_pb2.AgentState(
            instance_uid=self.instance_uid,
            agent_id=self.agent_id,
            connected=self.connected,
            transport=self.transport,
            session_started_unix_ms=self.session_started_ms,
            first_seen_unix_ms=self.first_seen_ms,
            last_change_unix_ms=self.last_change_ms,
            capabilities=self.capabilities,
            agent_description=self.agent_description,
            health=self.health,
            remote_config_status=self.remote_config_status,
            effective_config_digest=self.effective_config_digest,
            package_statuses=self.package_statuses,
            custom_capabilities=self.custom_capabilities,
            available_components=self.available_components,
            components_digest=self.components_digest,
            connection_settings_status=self.connection_settings_status,
            unknown_fields=self.unknown_fields,
            offered_hash=self.offered_hash,
            offers=[link_pb2.OfferedSlot(**slot._asdict()) for slot in self.offers],
            offered_at_unix_ms=self.offered_at_ms,
            healthy_before=self.healthy_before,
            applied=[link_pb2.OfferedSlot(**slot._asdict()) for slot in self.applied],
            failed=[
                link_pb2.FailedContent(
                    slot=f.slot,
                    content_hash=f.content_hash,
                    retry=f.retry,
                    error_message=f.error_message,
                    at_unix_ms=f.at_ms,
                )
                for f in self.failed
            ],
        ).SerializeToString(deterministic=True)

    def stored(self, state: bytes, *, sequence_exact: bool) -> bytes:
        """What is written to disk, around what `state` gave."""
        return link_pb2.StoredRecord(
            state=state,
            sequence_num=max(self.sequence_num, 0),
            sequence_exact=sequence_exact,
            last_seen_unix_ms=self.last_seen_ms,
            failed_hash=self.failed_hash,
            restarts=self.restarts,
        ).SerializeToString()

    @classmethod
    def from_stored(cls, data: bytes) -> Record:
        """Undo `stored`; the agent counts as disconnected until it is heard.

        Raises:
            google.protobuf.message.DecodeError: not a stored record.
        """
        stored = link_pb2.StoredRecord.FromString(data)
        state = link_pb2.AgentState.FromString(stored.state)
        record = cls(InstanceUid(state.instance_uid), state.first_seen_unix_ms)
        record.agent_id = AgentId(state.agent_id)
        record.sequence_num = stored.sequence_num
        record.sequence_exact = stored.sequence_exact
        record.failed_hash = stored.failed_hash
        record.last_seen_ms = stored.last_seen_unix_ms
        record.last_change_ms = state.last_change_unix_ms
        record.session_started_ms = state.session_started_unix_ms
        record.transport = state.transport
        record.capabilities = state.capabilities
        record.agent_description = state.agent_description
        record.effective_config_digest = state.effective_config_digest
        record.components_digest = state.components_digest
        record.available_components = state.available_components if state.HasField("available_components") else None
        record.unknown_fields = state.unknown_fields
        record.offered_hash = ConfigHash(state.offered_hash)
        record.offers = slots_of(state.offers)
        record.applied = slots_of(state.applied)
        record.offered_at_ms = state.offered_at_unix_ms
        record.healthy_before = state.healthy_before if state.HasField("healthy_before") else None
        record.failed = failures_of(state.failed)
        record.restarts = stored.restarts
        for name, _ in _KEPT:
            setattr(record, name, getattr(state, name) if state.HasField(name) else None)
        return record


def slots_of(messages: Iterable[link_pb2.OfferedSlot]) -> tuple[OfferedSlot, ...]:
    """As they are kept in a record."""
    return tuple(OfferedSlot(m.slot, m.assignment, m.content_hash, m.retry) for m in messages)


def failures_of(messages: Iterable[link_pb2.FailedContent]) -> tuple[Failure, ...]:
    """As they are kept in a record."""
    return tuple(Failure(m.slot, m.content_hash, m.retry, m.error_message, m.at_unix_ms) for m in messages)
