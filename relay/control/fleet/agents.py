"""One agent as it was reported, in as few bytes as a fleet of millions needs: its whole state is in the database."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

from google.protobuf.message import DecodeError

from relay.control.fleet.nodes import NodeState
from relay.control.fleet.profiles import Own, Profile, Profiles
from relay.fleet.rollup import status_name
from relay.fleet.shards import state_digest
from relay.opamp import capabilities
from relay.opamp.offering import FAILED, Offering
from relay.opamp.packages import PackageOffering
from relay.pb.opamp.v1 import opamp_pb2 as pb
from relay.pb.relay.v1 import link_pb2
from relay.policy.published import CONFIG
from relay.policy.selector import Facts

_KEPT_CHARS = 300
_MOST_SHARED = 10_000
"""Distinct offerings that are kept for sharing."""
_MOST_BYTES = 2_000
"""A longer one is not shared: who makes up many would fill the memory."""
_NEVER, _NO_PACKAGES = Offering(), PackageOffering()
"""Of agents that were never offered anything; never changed."""
T = TypeVar("T", bound=Offering)


@dataclass(slots=True, eq=False)
class Agent:
    """One agent as its node reported it."""

    uid: bytes
    agent_id: str
    node: str
    """REGION/NAME."""
    profile: Profile
    own: Own
    """What of its attributes no other agent has; see `Profile`."""
    digest: int
    connected: bool = True
    session_started_ms: int = 0
    started_ms: int = 0
    """When its session began, by our clock."""
    changed_ms: int = 0
    capabilities: int = 0
    config: Offering = _NEVER
    """What config it was last offered, and what became of it. Shared, never changed; when it was offered is beside it."""
    config_offered_ms: int = 0
    packages: PackageOffering | None = None
    """What packages; None for never any. Shared, too."""
    packages_offered_ms: int = 0
    package_statuses: bytes = b""
    """Its PackageStatuses, as it sent them."""
    healthy: bool | None = None
    last_error: str = ""
    status: str = "UNSET"
    """What has become of its config, as people see it."""
    effective_config_digest: bytes = b""
    components_digest: bytes = b""
    forgotten: bool = False
    """It left, and its node holds no record of it any more."""
    hidden: bool = False
    """In lists another agent of the same id stands for it; see `Census`."""
    stream: int = 0
    """The Report stream of its node that last told of it; see `NodeState.streams`."""

    @property
    def facts(self) -> Facts:
        """As selectors see it."""
        return self.profile.facts(self.agent_id, self.own)

    @property
    def age(self) -> tuple[int, bytes]:
        """Greater for the agent of a later session; of equal ones the uid decides."""
        return self.session_started_ms, self.uid

    def offering(self, kind: str) -> Offering:
        """What it was last offered by assignments of a kind; its date is `offered_ms`."""
        return self.config if kind == CONFIG else self.packages or _NO_PACKAGES

    def offered_ms(self, kind: str) -> int:
        """When that was offered to it, by the clock of its node."""
        return self.config_offered_ms if kind == CONFIG else self.packages_offered_ms

    def accepts(self, kind: str) -> bool:
        """Whether it takes what assignments of a kind offer."""
        bit = capabilities.ACCEPTS_REMOTE_CONFIG if kind == CONFIG else capabilities.ACCEPTS_PACKAGES
        return bool(self.capabilities & bit)

    def reports(self, kind: str) -> bool:
        """Whether it tells what became of it."""
        bit = capabilities.REPORTS_REMOTE_CONFIG if kind == CONFIG else capabilities.REPORTS_PACKAGE_STATUSES
        return bool(self.capabilities & bit)


class Misplaced(ValueError):
    """A state under the uid of another agent."""


class Reader:
    """Reads states. What agents have alike they are given as one object."""

    def __init__(self) -> None:
        self._profiles = Profiles()
        self._offerings: dict[object, Offering] = {}
        self._bytes: dict[bytes, bytes] = {}

    def read(self, uid: bytes, state: bytes, node: NodeState) -> Agent:
        """Take a state apart, all of it: what cannot be read later must not be accepted now.

        Raises:
            ValueError: it is not valid.
        """
        try:
            message = link_pb2.AgentState.FromString(state)
            health = pb.ComponentHealth.FromString(message.health) if message.HasField("health") else None
            profile, own = self._profiles.split(message.agent_description, node.region, node.trusted)
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
            package_statuses=self._once(message.package_statuses),
            healthy=health.healthy if health is not None else None,
            last_error=health.last_error[:_KEPT_CHARS] if health is not None else "",
            status=FAILED if config.failure is not None else status_name(status.status),
            effective_config_digest=self._once(message.effective_config_digest),
            components_digest=self._once(message.components_digest),
        )

    def _once(self, value: bytes) -> bytes:
        """An equal value that was seen before, or this one."""
        if not value or len(value) > _MOST_BYTES:
            return value
        known = self._bytes.get(value)
        if known is None:
            _make_room(self._bytes)
            known = self._bytes[value] = value
        return known

    def again(self, agent: Agent, node: NodeState) -> None:
        """Its node trusts other attributes than before."""
        agent.profile = self._profiles.trusting(agent.profile, node.trusted)

    def keep_baseline(self, agent: Agent, old: Agent) -> None:
        """Take over the health before an offer that another node knows of the same agent, where this one does not."""
        agent.config = self._with_baseline(agent.config, old.config)
        if agent.packages is not None and old.packages is not None:
            agent.packages = self._with_baseline(agent.packages, old.packages)

    def _with_baseline(self, offering: T, old: Offering) -> T:
        if None not in offering.baseline:
            return offering
        known = type(offering)()
        known.take(offering.message())
        known.keep_baseline(old)
        return offering if known.baseline == offering.baseline else self._offering(known.message(), type(offering))[1]

    def _offering(self, message: link_pb2.Offering, kind: type[T]) -> tuple[int, T]:
        """(when it was offered, what), the latter as one object for all agents that were offered it."""
        offered_ms = message.offered_at_unix_ms
        message.offered_at_unix_ms = 0
        key = kind, message.SerializeToString(deterministic=True)
        known = self._offerings.get(key)
        if known is None:
            known = kind()
            known.take(message)
            if len(key[1]) <= _MOST_BYTES:
                _make_room(self._offerings)
                self._offerings[key] = known
        assert isinstance(known, kind)
        return offered_ms, known


def _check(message: link_pb2.AgentState) -> None:
    """Raises DecodeError or RecursionError where a part cannot be read."""
    for part, kind in (
        (message.package_statuses, pb.PackageStatuses),
        (message.custom_capabilities, pb.CustomCapabilities),
        (message.available_components, pb.AvailableComponents),
        (message.connection_settings_status, pb.ConnectionSettingsStatus),
    ):
        if part:
            kind.FromString(part)


def _make_room(pool: dict[Any, Any]) -> None:
    """Nothing is shared with what came before, where there is too much of it."""
    if len(pool) >= _MOST_SHARED:
        pool.clear()
