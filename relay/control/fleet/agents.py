"""An agent in memory.

It is kept small, because a fleet has millions of them. The database holds its full state.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, TypeVar

from google.protobuf.message import DecodeError

from relay.auth.principal import label_problem
from relay.control.fleet.nodes import NodeState
from relay.control.fleet.profiles import Own, Profile, Profiles
from relay.fleet.facts import Proof
from relay.fleet.rollup import status_name
from relay.fleet.shards import state_digest
from relay.ids import digest64
from relay.opamp import capabilities
from relay.opamp.offering import FAILED, Offering
from relay.opamp.packages import PackageOffering
from relay.pb.opamp.v1 import opamp_pb2 as pb
from relay.pb.relay.v1 import link_pb2
from relay.policy.published import CONFIG
from relay.policy.selector import Facts

_ERROR_CHARS = 300
_MAX_SHARED = 10_000
"""Distinct offerings in the pool of shared ones."""
_MAX_SHARED_BYTES = 2_000
"""Longer values are not shared: somebody who invents many of them would fill the memory."""
_NEVER, _NO_PACKAGES = Offering(), PackageOffering()
"""For agents that were never offered anything. Must not be modified."""
T = TypeVar("T", bound=Offering)


@dataclass(slots=True, eq=False)
class Agent:
    """An agent as its node reported it."""

    uid: bytes
    agent_id: str
    node: str
    """REGION/NAME."""
    profile: Profile
    own: Own
    """Attribute values that it does not share; see `Profile`."""
    digest: int
    connected: bool = True
    session_started_ms: int = 0
    started_ms: int = 0
    """When its session began, corrected to our clock."""
    changed_ms: int = 0
    capabilities: int = 0
    config: Offering = _NEVER
    """The last config offer and its outcome, without its time. Shared between agents, so never modified."""
    config_offered_ms: int = 0
    packages: PackageOffering | None = None
    """The last package offer; None if there was none. Also shared."""
    packages_offered_ms: int = 0
    package_statuses: bytes = b""
    """Its PackageStatuses, as it sent them."""
    healthy: bool | None = None
    last_error: str = ""
    status: str = "UNSET"
    """The config status that users see."""
    effective_config_digest: bytes = b""
    components_digest: bytes = b""
    owner: int = 0
    """Digest of whose credential it came with; 0 where its node asks for none."""
    forgotten: bool = False
    """It has left, and its node no longer has a record of it."""
    hidden: bool = False
    """Another agent with the same id is listed in its place; see `Census`."""
    stream: int = 0
    """The Report stream of its node that last reported it; see `NodeState.streams`."""

    @property
    def facts(self) -> Facts:
        """What selectors match against."""
        return self.profile.facts(self.agent_id, self.own)

    @property
    def age(self) -> tuple[int, bytes]:
        """Sort key: later sessions are greater, and the uid breaks ties."""
        return self.session_started_ms, self.uid

    def offering(self, kind: str) -> Offering:
        """The last offer made by assignments of this kind; `offered_ms` has its time."""
        return self.config if kind == CONFIG else self.packages or _NO_PACKAGES

    def offered_ms(self, kind: str) -> int:
        """When that offer was made, by the clock of its node."""
        return self.config_offered_ms if kind == CONFIG else self.packages_offered_ms

    def accepts(self, kind: str) -> bool:
        """Whether it accepts offers of this kind."""
        bit = capabilities.ACCEPTS_REMOTE_CONFIG if kind == CONFIG else capabilities.ACCEPTS_PACKAGES
        return bool(self.capabilities & bit)

    def reports(self, kind: str) -> bool:
        """Whether it reports the outcome of offers of this kind."""
        bit = capabilities.REPORTS_REMOTE_CONFIG if kind == CONFIG else capabilities.REPORTS_PACKAGE_STATUSES
        return bool(self.capabilities & bit)


class Misplaced(ValueError):
    """A state is stored under the uid of another agent."""


class Reader:
    """Parses agent states. Equal parts of different agents become one shared object."""

    def __init__(self) -> None:
        self._profiles = Profiles()
        self._offerings: dict[object, Offering] = {}
        self._bytes: dict[bytes, bytes] = {}

    def read(self, uid: bytes, state: bytes, node: NodeState) -> Agent:
        """Parse a whole state: what cannot be read later must not be accepted now.

        Raises:
            ValueError: it is invalid.
        """
        try:
            message = link_pb2.AgentState.FromString(state)
            _check_labels(message.labels)
            health = pb.ComponentHealth.FromString(message.health) if message.HasField("health") else None
            profile, own = self._profiles.split(message.agent_description, node.region, node.trusted, Proof.of(message))
            status = pb.RemoteConfigStatus.FromString(message.remote_config_status)
            _check(message)
        except (DecodeError, RecursionError) as error:
            raise ValueError(f"its state cannot be read: {error}") from None
        if message.instance_uid != uid:
            raise Misplaced("its state belongs to another agent")
        agent_id, started_ms = message.agent_id, message.session_started_unix_ms
        config_offered_ms, config = self._offering(message.config, Offering)
        packages_offered_ms, packages = 0, None
        if message.HasField("packages"):
            packages_offered_ms, packages = self._offering(message.packages, PackageOffering)
        return Agent(
            uid,
            agent_id,
            node.key,
            profile,
            tuple([agent_id if value == agent_id else value for value in own]),
            state_digest(uid, state),
            connected=message.connected,
            session_started_ms=started_ms,
            started_ms=started_ms,
            changed_ms=message.last_change_unix_ms,
            capabilities=message.capabilities,
            config=config,
            config_offered_ms=config_offered_ms,
            packages=packages,
            packages_offered_ms=packages_offered_ms,
            package_statuses=self._shared(message.package_statuses),
            healthy=health.healthy if health is not None else None,
            last_error=health.last_error[:_ERROR_CHARS] if health is not None else "",
            status=FAILED if config.failure is not None else status_name(status.status),
            effective_config_digest=self._shared(message.effective_config_digest),
            components_digest=self._shared(message.components_digest),
            owner=_owner_of(message),
        )

    def _shared(self, value: bytes) -> bytes:
        """Return the pooled copy of a value."""
        if not value or len(value) > _MAX_SHARED_BYTES:
            return value
        pooled = self._bytes.get(value)
        if pooled is None:
            _make_room(self._bytes)
            pooled = self._bytes[value] = value
        return pooled

    def update_trust(self, agent: Agent, node: NodeState) -> None:
        """Update the profile of an agent after its node changed its trusted attributes."""
        agent.profile = self._profiles.trusting(agent.profile, node.trusted)

    def keep_baseline(self, agent: Agent, old: Agent) -> None:
        """Fill in the health before an offer from an older state of the same agent, where the new state lacks it."""
        agent.config = self._with_baseline(agent.config, old.config)
        if agent.packages is not None and old.packages is not None:
            agent.packages = self._with_baseline(agent.packages, old.packages)

    def _with_baseline(self, offering: T, old: Offering) -> T:
        if None not in offering.baseline:
            return offering
        filled = type(offering)()
        filled.take(offering.message())
        filled.keep_baseline(old)
        return offering if filled.baseline == offering.baseline else self._offering(filled.message(), type(offering))[1]

    def _offering(self, message: link_pb2.Offering, kind: type[T]) -> tuple[int, T]:
        """Return (time of the offer, offering). Equal offerings are one shared object."""
        offered_ms = message.offered_at_unix_ms
        message.offered_at_unix_ms = 0
        key = kind, message.SerializeToString(deterministic=True)
        offering = self._offerings.get(key)
        if offering is None:
            offering = kind()
            offering.take(message)
            if len(key[1]) <= _MAX_SHARED_BYTES:
                _make_room(self._offerings)
                self._offerings[key] = offering
        assert isinstance(offering, kind)
        return offered_ms, offering


def _check(message: link_pb2.AgentState) -> None:
    """Raise DecodeError or RecursionError if a part cannot be parsed."""
    for part, kind in (
        (message.package_statuses, pb.PackageStatuses),
        (message.custom_capabilities, pb.CustomCapabilities),
        (message.available_components, pb.AvailableComponents),
        (message.connection_settings_status, pb.ConnectionSettingsStatus),
    ):
        if part:
            kind.FromString(part)


def _owner_of(message: link_pb2.AgentState) -> int:
    if not message.auth_method:
        return 0
    return owner_of(message.agent_id if message.id_proved else message.subject, is_single=message.id_proved)


def owner_of(name: str, *, is_single: bool) -> int:
    """`Agent.owner` of agents with a credential for one agent, or with one that several share."""
    return digest64(f"{'agent' if is_single else 'shared'}\0{name}".encode())


def _check_labels(text: str) -> None:
    """Raises ValueError if these are not labels that a credential may have. A node may be hostile."""
    if not text:
        return
    try:
        labels = json.loads(text)
    except RecursionError:
        labels = None
    if problem := label_problem(labels):
        raise ValueError(problem)


def _make_room(pool: dict[Any, Any]) -> None:
    """Empty a full pool. Later values are no longer shared with earlier ones."""
    if len(pool) >= _MAX_SHARED:
        pool.clear()
