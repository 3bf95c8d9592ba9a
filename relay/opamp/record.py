"""An agent put together from compressed reports (spec: Agent Status Compression).

Sub-messages are kept as the bytes that came: fields that this schema does not know survive, and ten thousand records
are small. Who wants to look inside parses.
"""

from __future__ import annotations

from relay.ids import AgentId, ConfigHash, InstanceUid, sha256
from relay.opamp import body, identity
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


_KEPT = (
    ("health", Change.HEALTH),
    ("remote_config_status", Change.CONFIG_STATUS),
    ("package_statuses", Change.OTHER),
    ("custom_capabilities", Change.OTHER),
    ("available_components", Change.OTHER),
    ("connection_settings_status", Change.OTHER),
)
"""Sub-messages that are kept as bytes under their own name."""


class Record:
    """What is known of one agent. Owned by the node's registry; changed only through `merge` and by that owner."""

    __slots__ = (
        "agent_description",
        "agent_id",
        "assignments",
        "available_components",
        "capabilities",
        "cohort",
        "connected",
        "connection_settings_status",
        "counted",
        "custom_capabilities",
        "digest",
        "effective_config_digest",
        "failed_hash",
        "first_seen_ms",
        "health",
        "instance_uid",
        "last_change_ms",
        "last_seen_ms",
        "offered_hash",
        "package_statuses",
        "remote_config_status",
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
        self.unknown_fields = b""
        self.offered_hash = ConfigHash(b"")
        self.failed_hash = b""
        """The last config_hash that the agent reported FAILED: not offered again."""
        self.assignments: tuple[str, ...] = ()
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
        unknown = body.unknown_fields(message)
        if unknown != self.unknown_fields and (unknown or full):
            self.unknown_fields = unknown
            changes |= Change.OTHER
        if changes & (Change.DESCRIPTION | Change.CAPABILITIES):
            self.cohort = None
        if changes & Change.CONFIG_STATUS:
            self._remember_failure()
        return changes

    def _remember_failure(self) -> None:
        # Not undone by a later APPLIED of the same hash: opampsupervisor sends one for a config that failed within the
        # settling time of the one before.
        status = self.config_status()
        if status.status == pb.RemoteConfigStatuses_FAILED:
            self.failed_hash = status.last_remote_config_hash

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
            connection_settings_status=self.connection_settings_status,
            unknown_fields=self.unknown_fields,
            offered_hash=self.offered_hash,
            assignments=self.assignments,
        ).SerializeToString(deterministic=True)

    def stored(self, state: bytes, *, sequence_exact: bool) -> bytes:
        """What is written to disk, around what `state` gave."""
        return link_pb2.StoredRecord(
            state=state,
            sequence_num=max(self.sequence_num, 0),
            sequence_exact=sequence_exact,
            last_seen_unix_ms=self.last_seen_ms,
            failed_hash=self.failed_hash,
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
        record.unknown_fields = state.unknown_fields
        record.offered_hash = ConfigHash(state.offered_hash)
        record.assignments = tuple(state.assignments)
        for name, _ in _KEPT:
            setattr(record, name, getattr(state, name) if state.HasField(name) else None)
        return record
