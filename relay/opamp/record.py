"""The state of an agent, merged from compressed reports (spec: Agent Status Compression).

Sub-messages are kept as the received bytes: fields that this schema does not know survive, and ten thousand records stay
small. Code that needs a field parses the bytes.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

from relay.ids import AgentId, InstanceUid, format_uid, sha256
from relay.opamp import body, capabilities, identity
from relay.opamp.offer import Failure, OfferedSlot
from relay.opamp.offering import APPLIED, APPLYING, FAILED, Offering
from relay.opamp.packages import PackageOffering, PackagesOffer, reported_hash
from relay.pb.opamp.v1 import opamp_pb2 as pb
from relay.pb.relay.v1 import link_pb2


class Change:
    """What a report changed, as bits of an int. NONE is a heartbeat.

    Plain ints, because operations on enum.IntFlag took a tenth of the time that a connecting agent costs.
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
    PACKAGES = 1024
    PACKAGES_OFFERED = 2048


_RAW_FIELDS = (
    ("health", Change.HEALTH),
    ("remote_config_status", Change.CONFIG_STATUS),
    ("package_statuses", Change.PACKAGES),
    ("custom_capabilities", Change.OTHER),
    ("connection_settings_status", Change.OTHER),
)
"""Sub-messages that are kept as bytes, under their own names."""


_STATUS_NAMES = {
    pb.RemoteConfigStatuses_APPLIED: APPLIED,
    pb.RemoteConfigStatuses_APPLYING: APPLYING,
    pb.RemoteConfigStatuses_FAILED: FAILED,
}


_SHARED_STATUS_BYTES = 512
"""A longer status has an error message of its own; shorter ones are equal for thousands of agents."""
_status_of = functools.lru_cache(maxsize=1024)(pb.RemoteConfigStatus.FromString)


class Credential(NamedTuple):
    """The credential that an agent came with, as its node verified it."""

    subject: str
    agent_id: str
    """The agent id that it proves; empty for a credential that many agents share."""
    method: str
    id: str
    labels: str
    """Its trusted labels, a canonical JSON object; empty for none."""
    expires_ms: int
    """Unix milliseconds; 0 for never."""

    @property
    def owner(self) -> tuple[str, str]:
        """What a record belongs to. A shared credential's never equals an agent's."""
        return ("agent", self.agent_id) if self.agent_id else ("shared", self.subject)


class Merged(NamedTuple):
    """What a report changed, and its new bodies: the record keeps only their digests."""

    changes: int
    """Bits of `Change`."""
    effective_config: bytes | None = None
    """A serialised EffectiveConfig."""
    components: bytes | None = None
    """A serialised AvailableComponents."""


class Record:
    """The state of one agent. Owned by the node's registry; changed only by that owner and through `merge`."""

    __slots__ = (
        "agent_description",
        "agent_id",
        "available_components",
        "capabilities",
        "cohort",
        "components_digest",
        "config",
        "connected",
        "connection_settings_status",
        "counted",
        "credential",
        "custom_capabilities",
        "digest",
        "effective_config_digest",
        "first_seen_ms",
        "health",
        "instance_uid",
        "last_change_ms",
        "last_seen_ms",
        "package_statuses",
        "packages",
        "remote_config_status",
        "said_goodbye",
        "sequence_exact",
        "sequence_num",
        "session_started_ms",
        "transport",
        "unknown_fields",
    )

    def __init__(self, instance_uid: InstanceUid, first_seen_ms: int) -> None:
        self.instance_uid = instance_uid
        self.agent_id = AgentId("")
        """Empty until a description arrives or is no longer waited for; see `use_uid_as_id`."""
        self.sequence_num = -1
        self.sequence_exact = True
        """False for a record from disk if the sequence may have advanced since it was written."""
        self.capabilities = 0
        self.agent_description = b""
        # A sub-message that was never reported is None; one that was reported empty (`health {}`: unhealthy) is b"".
        self.health: bytes | None = None
        self.remote_config_status: bytes | None = None
        self.package_statuses: bytes | None = None
        self.custom_capabilities: bytes | None = None
        self.available_components: bytes | None = None
        self.connection_settings_status: bytes | None = None
        self.effective_config_digest = b""
        self.components_digest = b""
        """Digest of the component list; `available_components` has only its hash. Empty until the agent sends the list."""
        self.unknown_fields = b""
        self.credential: Credential | None = None
        """None while the node asks for none."""
        self.config = Offering()
        """The config that the agent was offered."""
        self.packages: PackageOffering | None = None
        """The packages that the agent was offered; None if it never was, like most agents."""
        self.connected = False
        self.said_goodbye = False
        """The agent sent agent_disconnect."""
        self.transport = ""
        self.first_seen_ms = first_seen_ms
        self.last_change_ms = first_seen_ms
        self.session_started_ms = 0
        self.last_seen_ms = first_seen_ms
        self.digest = 0
        """Digest of the state last counted in the node's shards; see `relay.fleet.shards`."""
        self.counted: object = None
        """The class last counted in the node's roll-up; see `relay.fleet.rollup`."""
        self.cohort: object = None
        """Set by `relay.fleet.cohort`; None if it must be computed again."""

    def use_uid_as_id(self) -> None:
        """Use the uid as the agent id, for an agent that sends no description (Java clients over WebSocket never do)."""
        if not self.agent_id:
            self.agent_id = AgentId(format_uid(self.instance_uid))
            self.cohort = None

    @property
    def known_as(self) -> str:
        """What its records under other uids are found by. An agent id that is not proved counts within its subject only."""
        if self.credential is None or self.credential.agent_id:
            return self.agent_id
        return f"{self.credential.subject}\0{self.agent_id}"

    def belongs_to(self, credential: Credential | None) -> bool:
        """Whether somebody with this credential may use the record. One without a credential goes to the first."""
        return credential is None or self.credential is None or self.credential.owner == credential.owner

    def adopt(self, credential: Credential | None) -> int:
        """Take over the credential that the agent came with. Returns bits of `Change`."""
        if credential == self.credential:
            return Change.NONE
        self.credential = credential
        if credential is not None and credential.agent_id:
            self.agent_id = AgentId(credential.agent_id)
        self.cohort = None
        return Change.OTHER

    @property
    def id_proved(self) -> bool:
        """Whether its credential proves its agent id."""
        return self.credential is not None and bool(self.credential.agent_id)

    def merge(self, message: pb.AgentToServer, *, full: bool) -> Merged:
        """Merge a report into the record; with `full`, also clear what the report omits."""
        effective_config = components = None
        changes = Change.NONE
        if message.capabilities and message.capabilities != self.capabilities:
            self.capabilities = message.capabilities
            changes |= Change.CAPABILITIES
        if message.HasField("agent_description"):
            description = message.agent_description.SerializeToString(deterministic=True)
            if description != self.agent_description:
                self.agent_description = description
                if not self.id_proved:
                    self.agent_id = identity.agent_id(message.agent_description, self.instance_uid)
                changes |= Change.DESCRIPTION
        for name, change in _RAW_FIELDS:
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
            body_ = message.effective_config.SerializeToString(deterministic=True)
            digest = sha256(body_)
            if digest != self.effective_config_digest:
                self.effective_config_digest, effective_config = digest, body_
                changes |= Change.EFFECTIVE_CONFIG
        elif full and self.effective_config_digest:
            self.effective_config_digest = b""
            changes |= Change.EFFECTIVE_CONFIG
        if message.HasField("available_components"):
            changed, components = self._merge_components(message.available_components)
            changes |= changed
        elif full and self.available_components is not None:
            self.available_components, self.components_digest = None, b""
            changes |= Change.OTHER
        unknown = body.unknown_fields(message)
        if unknown != self.unknown_fields and (unknown or full):
            self.unknown_fields = unknown
            changes |= Change.OTHER
        if changes & (Change.DESCRIPTION | Change.CAPABILITIES):
            self.cohort = None
        if changes & Change.CONFIG_STATUS:
            self._take_status()
        if changes & Change.PACKAGES and self.packages is not None:
            self._take_packages(self.packages)
        return Merged(changes, effective_config, components)

    def _merge_components(self, reported: pb.AvailableComponents) -> tuple[int, bytes | None]:
        """Return bits of `Change`, and the list if it is new."""
        hash_only = pb.AvailableComponents(hash=reported.hash).SerializeToString()
        changes = Change.NONE
        if hash_only != self.available_components:
            self.available_components, self.components_digest = hash_only, b""
            changes = Change.OTHER
        if not reported.components:
            return changes, None
        body_ = reported.SerializeToString(deterministic=True)
        digest = sha256(body_)
        if digest == self.components_digest:
            return changes, None
        self.components_digest = digest
        return changes | Change.COMPONENTS, body_

    def _take_status(self) -> None:
        before = self.config.failures
        hash_, status, reason = self._last_status()
        self.config.take_status(hash_, status, reason)
        if self.config.failures != before:
            self.cohort = None

    def _last_status(self) -> tuple[bytes, str, str]:
        """Hash, status and error message of the last RemoteConfigStatus."""
        status = self.config_status()
        return status.last_remote_config_hash, _STATUS_NAMES.get(status.status, ""), status.error_message

    def _take_packages(self, packages: PackageOffering) -> None:
        before = packages.failures
        packages.report(self.package_statuses)
        if packages.failures != before:
            self.cohort = None

    def offer_config(self, hash_: bytes, slots: tuple[OfferedSlot, ...], *, held: bool = False) -> bool:
        """Record a config offer, or that the agent already has it (`held`). Returns False if nothing changed."""
        changed = self.config.offer(hash_, slots, self.healthy(), held=held and not self.config.hash)
        if changed:
            last_hash, status, _ = self._last_status()
            self.config.update_status(last_hash, status)
        return changed

    def note_earlier_failure(self, hash_: bytes, slots: tuple[OfferedSlot, ...]) -> bool:
        """Record a failure that was reported before this node knew the config. Returns False if it is already recorded."""
        recorded = {(failure.slot, failure.content_hash) for failure in self.config.failures}
        if self.config.hash == hash_ or any((slot.slot, slot.content_hash) in recorded for slot in slots):
            return False
        self.config.offer(hash_, slots, self.healthy(), held=True)
        self._take_status()
        return True

    def offer_packages(self, offer: PackagesOffer, *, held: bool = False) -> bool:
        """Record a packages offer, or that the agent already has it (`held`). Returns False if nothing changed."""
        held = held and self.packages is None
        if self.packages is None:
            self.packages = PackageOffering()
        return self.packages.offer_packages(offer, self.package_statuses, self.healthy(), held=held)

    @property
    def failures(self) -> tuple[Failure, ...]:
        """Everything that the agent could not apply, configs and packages."""
        return self.config.failures if self.packages is None else (*self.config.failures, *self.packages.failures)

    @property
    def offered_slots(self) -> tuple[OfferedSlot, ...]:
        """The slots last offered to the agent, configs and packages."""
        return self.config.slots if self.packages is None else (*self.config.slots, *self.packages.slots)

    @property
    def installed(self) -> tuple[OfferedSlot, ...]:
        """The packages that the agent last reported as installed."""
        return () if self.packages is None else self.packages.applied

    def packages_reported(self) -> bytes:
        """The all_packages_hash that the agent last reported; empty for none."""
        if self.packages is not None:
            return self.packages.reported_hash
        return reported_hash(self.package_statuses)

    def runs(self, content_hash: bytes) -> bool:
        """Whether the agent reported this content as applied."""
        offerings = (self.config, self.packages)
        return any(s.content_hash == content_hash for o in offerings if o is not None for s in o.applied)

    def healthy_before(self, content_hash: bytes) -> bool | None:
        """The agent's health before this content was offered; None if unknown."""
        for offering in (self.config, self.packages):
            if offering is not None:
                for slot, health in zip(offering.slots, offering.baseline, strict=True):
                    if slot.content_hash == content_hash:
                        return health
        return None

    def note_restart(self) -> None:
        """Record a restart of the agent's process; see `Offering.note_restart`."""
        # If the agent never reports config status, silence means nothing.
        if self.capabilities & capabilities.REPORTS_REMOTE_CONFIG and self.config.note_restart():
            self.cohort = None

    def inherit(self, old: Record) -> None:
        """Take over the memory of the same agent under another instance_uid."""
        self.first_seen_ms = old.first_seen_ms
        self.config.inherit(old.config)
        if old.packages is not None:
            self.packages = PackageOffering()
            self.packages.inherit(old.packages)
        self.cohort = None
        if self.remote_config_status is not None:
            self._take_status()
        if self.packages is not None:
            self._take_packages(self.packages)

    def config_status(self) -> pb.RemoteConfigStatus:
        """The last RemoteConfigStatus, UNSET if none was reported. Read-only: it may be shared."""
        content = self.remote_config_status or b""
        return (
            _status_of(content) if len(content) <= _SHARED_STATUS_BYTES else pb.RemoteConfigStatus.FromString(content)
        )

    def healthy(self) -> bool | None:
        """The agent's own health; None if not reported."""
        return None if self.health is None else pb.ComponentHealth.FromString(self.health).healthy

    def _credential_fields(self) -> dict[str, Any]:
        credential = self.credential
        if credential is None:
            return {}
        return {
            "subject": credential.subject,
            "id_proved": bool(credential.agent_id),
            "auth_method": credential.method,
            "credential_id": credential.id,
            "labels": credential.labels,
            "credential_expires_unix_ms": credential.expires_ms,
        }

    def state(self) -> bytes:
        """A serialised AgentState, as reported and stored. The sequence and `last_seen` are not part of it."""
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
            config=self.config.message(),
            packages=self.packages.message() if self.packages is not None else None,
            **self._credential_fields(),
        ).SerializeToString(deterministic=True)

    def stored(self, state: bytes, *, sequence_exact: bool) -> bytes:
        """A serialised StoredRecord around the result of `state`, as written to disk."""
        return link_pb2.StoredRecord(
            state=state,
            sequence_num=max(self.sequence_num, 0),
            sequence_exact=sequence_exact,
            last_seen_unix_ms=self.last_seen_ms,
            failed_hash=self.config.failed_hash,
            restarts=self.config.restarts,
            failed_packages=self.packages.failed_hash if self.packages is not None else b"",
            said_goodbye=self.said_goodbye,
        ).SerializeToString()

    @classmethod
    def from_stored(cls, data: bytes) -> Record:
        """Restore a record from `stored`; the agent counts as disconnected until it is heard.

        Raises:
            google.protobuf.message.DecodeError: not a stored record.
        """
        stored = link_pb2.StoredRecord.FromString(data)
        state = link_pb2.AgentState.FromString(stored.state)
        record = cls(InstanceUid(state.instance_uid), state.first_seen_unix_ms)
        record.agent_id = AgentId(state.agent_id)
        record.sequence_num = stored.sequence_num
        record.sequence_exact = stored.sequence_exact
        record.config.take(state.config)
        record.config.failed_hash, record.config.restarts = stored.failed_hash, stored.restarts
        record.last_seen_ms = stored.last_seen_unix_ms
        record.said_goodbye = stored.said_goodbye
        record.last_change_ms = state.last_change_unix_ms
        record.session_started_ms = state.session_started_unix_ms
        record.transport = state.transport
        record.capabilities = state.capabilities
        record.agent_description = state.agent_description
        record.effective_config_digest = state.effective_config_digest
        record.components_digest = state.components_digest
        record.available_components = state.available_components if state.HasField("available_components") else None
        record.unknown_fields = state.unknown_fields
        if state.auth_method:
            record.credential = Credential(
                state.subject,
                state.agent_id if state.id_proved else "",
                state.auth_method,
                state.credential_id,
                state.labels,
                state.credential_expires_unix_ms,
            )
        for name, _ in _RAW_FIELDS:
            setattr(record, name, getattr(state, name) if state.HasField(name) else None)
        if state.HasField("packages"):
            packages = record.packages = PackageOffering()
            packages.take(state.packages)
            packages.failed_hash = stored.failed_packages
            packages.reported_hash = reported_hash(record.package_statuses)
        return record
