"""Connects connections, sessions and policy. Implements `transport.ports.Agents`.

The hub owns the map of live agents. Its methods are synchronous and run on one event loop, so no await comes between
reading and writing a map. `asking` requests full state, `spreading` offers a policy change to all agents, and `contests`
decides between agents that use the same uid.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable
from typing import Protocol

from relay.aio.clock import Clock
from relay.auth.principal import Principal
from relay.documents import canonical_json
from relay.errors import AgentError, Overloaded
from relay.fleet.cohort import Cohorts
from relay.fleet.rollup import status_name
from relay.ids import format_uid, new_instance_uid
from relay.node.asking import Asking
from relay.node.contests import Arrival, Contests
from relay.node.live import Live
from relay.node.registry import Registry
from relay.node.spreading import Spreading
from relay.observe import log
from relay.observe.metrics import NodeMetrics
from relay.opamp import body, capabilities, gateway
from relay.opamp.contest import Verdict
from relay.opamp.offer import Offer
from relay.opamp.packages import PackagesOffer
from relay.opamp.record import Change, Credential, Record
from relay.opamp.session import Reply, Services, Session
from relay.pb.opamp.v1 import opamp_pb2 as pb
from relay.transport.ports import Caller, CloseReason, Connection

_log = log.get("opamp-relay.hub")
_DESCRIBE_WITHIN_S = 10.0
_MAX_MISSED = 3
"""How many polls or heartbeats an agent may miss."""
_OFFLINE_AFTER_S = 90.0
"""An HTTP agent counts as gone after so much silence at the earliest."""
_LOGGED_CHARS = 500
"""How much of an agent's error text is logged; its record has all of it."""
_DUPLICATE_LOG_S = 10.0
_MAX_UIDS_OF_ONE = 16
"""Records of one proved agent id: an agent that draws a new uid with each start leaves some behind."""
_ALIVE_S = 60.0
"""Two heartbeats. An agent that was silent for longer may have lost its connection unnoticed."""
_CAPABILITIES = body.capabilities_field(capabilities.SERVER)
_MAX_IGNORED_UIDS = 2
"""How often a client may ignore a new uid."""


class PackageSource(Protocol):
    """Provides the packages for offers; see `relay.node.packages`."""

    def available(self, offer: PackagesOffer) -> bool:
        """Whether all files of an offer can be downloaded from here now. If not, the source fetches them."""
        ...

    def field(self, offer: PackagesOffer, base_url: str) -> bytes:
        """The encoded offer, with addresses below `base_url`."""
        ...

    def reachable(self, base_url: str) -> bool:
        """Whether an agent that reached this node at `base_url` can download from it. Empty means unknown."""
        ...

    def recheck(self, sha256: str) -> None:
        """Check a file that an agent could not install."""
        ...


class Hub:
    """All live agents of a node."""

    def __init__(
        self,
        registry: Registry,
        cohorts: Cohorts,
        *,
        clock: Clock,
        metrics: NodeMetrics,
        max_agents: int,
        max_agents_per_connection: int,
        max_bad_messages: int,
        heartbeat_s: float,
        idle_s: float,
        max_elements: int,
        full_state_per_second: float,
        retry_after_s: float,
        may_offer: Callable[[], bool],
        packages: PackageSource,
    ) -> None:
        self._registry = registry
        self._cohorts = cohorts
        self._clock = clock
        self._metrics = metrics
        self._max_agents = max_agents
        self._max_per_connection = max_agents_per_connection
        self._max_bad = max_bad_messages
        self._heartbeat_s = heartbeat_s
        self._idle_s = idle_s
        self._max_elements = max_elements
        self._retry_after_s = retry_after_s
        self._may_offer = may_offer
        self._packages = packages
        self._live: dict[bytes, Live] = {}
        self._by_connection: dict[Connection, dict[bytes, Live]] = {}
        self._renames: dict[bytes, bytes] = {}
        """New uid → old uid of agents that were given a new one and have not used it yet."""
        self._ignored: dict[Connection, int] = {}
        self._bad: dict[Connection, int] = {}
        """Bad messages on each connection that did not come from an agent attached to it."""
        self._shared: set[Connection] = set()
        """Connections that have carried more than one agent, so a proxy's."""
        self._contests = Contests(won=self._newcomer_won, lost=self._newcomer_lost)
        self._undescribed: deque[tuple[float, Live]] = deque()
        """(deadline to send a description, agent), earliest first."""
        self._asking = Asking(
            full_state_per_second, clock=clock, metrics=metrics, is_live=self._is_live, push=self._push
        )
        self._spreading = Spreading(registry, clock=clock, everybody=self._live.values, offer=self._offer_if_changed)
        self._log_duplicate_at = 0.0
        self._damaged_at: dict[str, float] = {}
        """SHA-256 of package files → when they were found to be damaged."""
        self._log_info = log.enabled("info")
        self._services = Services(
            decide=self._decide,
            decide_packages=self._decide_packages,
            packages_field=self._packages_field,
            fresh_uid=self._fresh_uid,
            may_ask=self._asking.may_ask,
            predecessor=registry.predecessor,
            withheld=cohorts.withheld,
        )

    @property
    def last_change_s(self) -> float:
        """How long it took to offer the last policy change to all connected agents."""
        return self._spreading.last_s

    @property
    def asking(self) -> int:
        """How many agents wait to be asked for their full state."""
        return len(self._asking)

    @property
    def connected(self) -> int:
        """How many agents have a session."""
        return len(self._live)

    # ---- ports.Agents

    def receive(self, connection: Connection, caller: Caller, content: bytes) -> bytes:
        """Answer one message; see `ports.Agents`."""
        now = self._clock.monotonic()
        key = content[2:18]  # the uid, if it is the first field
        live = self._live.get(key)
        if live is not None and self._registry.get(key) is not live.session.record:
            self._release_uid(key, live)  # its record was dropped after a goodbye, so it starts anew
            live = None
        if live is not None and self._speaks_alone(key, live, connection, caller):
            before = live.session.last_seen
            reply = live.session.heartbeat(content, now)
            if reply is not None:
                live.caller = caller
                live.polled(before, now)
                self._contests.heard(live)
                return reply
        if live is None and (greeting := gateway.answer(content)) is not None:
            self._shared.add(connection)
            return greeting
        message = body.decode(content, self._max_elements)
        uid = message.instance_uid
        credential = _credential_of(caller.principal)
        record = self._registry.get(uid)
        if record is not None and not record.belongs_to(credential):
            return self._refuse_uid(connection, caller, uid)  # whoever sends this is another agent
        live = self._live.get(uid)
        if live is not None and live.session.record is not record:
            self._release_uid(uid, live)  # as above, where the uid is not the first field
            live = None
        if live is not None:
            refusal = self._contend(live, message, connection, caller, content)
            if refusal is not None:
                return refusal
            live = self._live.get(uid)  # None if another agent or connection now has the uid
        if live is None:
            live = self._attach(connection, caller, uid, credential)
        live.caller = caller
        live.polled(live.session.last_seen, now)
        if connection.transport_name != "http":
            connection.session = live.session
        answer = live.session.report(message, now, credential)
        if answer.new_uid is not None:
            self._renames.pop(live.new_uid or b"", None)
            live.new_uid = answer.new_uid
            self._renames[answer.new_uid] = uid
        if answer.changes:
            self._changed(live, answer, now)
        if live.session.needs_full:
            self._asking.later(live)
        if not live.session.record.agent_description and not live.awaits_description:
            live.awaits_description = True
            self._undescribed.append((now + _DESCRIBE_WITHIN_S, live))
        return answer.body

    def _speaks_alone(self, uid: bytes, live: Live, connection: Connection, caller: Caller) -> bool:
        """Whether a heartbeat can be answered without checking which agent sent it."""
        if live.connection is not connection or live.caller.principal is not caller.principal:
            return False  # over HTTP all agents share a connection, and each message brings its own credential
        return not connection.header and not self._contests.has(uid)

    def misbehaved(self, connection: Connection, uid: bytes) -> None:
        """See `ports.Agents`."""
        live = self._by_connection.get(connection, {}).get(uid)
        if live is None:
            count = self._bad[connection] = self._bad.get(connection, 0) + 1
        else:
            count = live.misbehaved()
        if count < self._max_bad:
            return
        if connection not in self._shared:
            connection.close(CloseReason.BAD_MESSAGES)
        elif live is not None:
            self._by_connection[connection].pop(uid)
            self._detach(uid, live)

    def resumed(self, connection: Connection) -> None:
        """Send what waited while the connection was not writable."""
        for live in list(self._by_connection.get(connection, {}).values()):
            self._push(live, self._clock.monotonic())

    def disconnected(self, connection: Connection) -> None:
        """Detach the agents of this connection, except those that have moved to another."""
        self._ignored.pop(connection, None)
        self._bad.pop(connection, None)
        self._shared.discard(connection)
        self._contests.disconnected(connection)
        for uid, live in self._by_connection.pop(connection, {}).items():
            if self._live.get(uid) is live:
                self._detach(uid, live)

    # ---- attaching

    def _contend(
        self, live: Live, message: pb.AgentToServer, connection: Connection, caller: Caller, content: bytes
    ) -> bytes | None:
        """Check a message whose uid is taken. Return the answer if its sender may not use the uid now, else None."""
        uid = message.instance_uid
        is_elsewhere = live.connection is not connection
        verdict = self._contests.hear(uid, live, message, connection)
        if verdict is Verdict.NEWCOMER:
            return self._refuse_uid(connection, caller, uid)
        if verdict is Verdict.EITHER and not is_elsewhere:
            return body.uid_field(uid) + (body.FULL_STATE if self._asking.may_ask(self._clock.monotonic()) else b"")
        if verdict in (Verdict.UNKNOWN, Verdict.RETURNED) and not is_elsewhere and self._contests.has(uid):
            live.session.request_full_state_now()
        if verdict is Verdict.RETURNED and is_elsewhere:
            self._release_uid(uid, live)
            self._newcomer_lost(uid, live.connection, live.caller)
        elif verdict is Verdict.SAME and is_elsewhere:
            self._replace(uid, live)
        elif is_elsewhere and not message.HasField("agent_description"):
            if self._is_alive(live, connection):
                # The holder keeps the uid until the newcomer has said who it is.
                return body.uid_field(uid) + (body.FULL_STATE if self._asking.may_ask(self._clock.monotonic()) else b"")
            self._replace(uid, live)
        elif is_elsewhere:
            ping = live.connection not in self._shared
            self._contests.challenge(uid, live, message, Arrival(connection, caller, content), ping=ping)
            return body.uid_field(uid)
        return None

    def _newcomer_won(self, uid: bytes, holder: Live, arrival: Arrival) -> None:
        if self._live.get(uid) is holder:
            self._replace(uid, holder)
        if arrival.connection.transport_name == "http":
            # The newcomer's request is answered already. Its next poll begins a session, which asks for full state.
            holder.session.record.sequence_exact = False
            return
        with contextlib.suppress(AgentError, Overloaded):
            arrival.connection.send(self.receive(*arrival))

    def _newcomer_lost(self, uid: bytes, connection: Connection, caller: Caller) -> None:
        if connection.writable:  # an HTTP agent is told when it polls next
            connection.send(self._refuse_uid(connection, caller, uid))

    def _attach(self, connection: Connection, caller: Caller, uid: bytes, credential: Credential | None) -> Live:
        """Begin a session."""
        attached = self._by_connection.setdefault(connection, {})
        if connection.transport_name != "http":
            if len(attached) >= self._max_per_connection:
                self._metrics.refused["agents_per_connection"] += 1
                raise Overloaded(f"this connection already has {self._max_per_connection} agents, the maximum")
            if attached:
                self._shared.add(connection)
        record = self._registry.get(uid)
        old_uid = self._renames.pop(uid, None)
        if record is None and old_uid is not None:
            record = self._rename(old_uid, uid, credential)
        if record is None:
            proved_id = credential.agent_id if credential is not None else ""
            if proved_id and not self._registry.has_room_for(proved_id, _MAX_UIDS_OF_ONE):
                # One credential must not take the places of all others.
                self._metrics.refused["uids_of_one_agent"] += 1
                message = f"{proved_id} already has {_MAX_UIDS_OF_ONE} instance_uids, the maximum"
                raise Overloaded(message, retry_after_s=self._retry_after_s)
            if len(self._registry) >= self._max_agents and not self._registry.make_room(self._max_agents):
                self._metrics.refused["agents"] += 1
                message = f"this node already has {self._max_agents} agents, the maximum"
                raise Overloaded(message, retry_after_s=self._retry_after_s)
            record = self._registry.new(uid)
        live = Live(Session(record, self._services, connection.header), connection, caller)
        self._live[uid] = attached[uid] = live
        return live

    def _is_alive(self, live: Live, other: Connection) -> bool:
        """Whether an agent was heard lately on a connection that allows pushes and is not `other`."""
        silence_s = self._clock.monotonic() - live.session.last_seen
        return live.connection is not other and live.connection.writable and silence_s < _ALIVE_S

    def _refuse_uid(self, connection: Connection, caller: Caller, uid: bytes) -> bytes:
        ignored = self._ignored.get(connection, 0) + 1
        self._metrics.bad_messages["duplicate_uid"] += 1
        if connection.transport_name != "http":
            self._ignored[connection] = ignored
            if ignored > _MAX_IGNORED_UIDS and connection not in self._shared:
                connection.close(CloseReason.DUPLICATE_UID)
        now = self._clock.monotonic()
        if now >= self._log_duplicate_at:
            self._log_duplicate_at = now + _DUPLICATE_LOG_S
            _log.warning("duplicate_uid", instance_uid=format_uid(uid), remote_addr=caller.remote)
        return body.uid_field(uid) + body.identification_field(self._fresh_uid()) + _CAPABILITIES

    def _replace(self, uid: bytes, live: Live) -> None:
        """Move a uid to a new connection. Close the old connection unless it is a proxy's."""
        self._release_uid(uid, live)
        if not self._by_connection.get(live.connection) and live.connection not in self._shared:
            live.connection.close(CloseReason.REPLACED)

    def _release_uid(self, uid: bytes, live: Live) -> None:
        """Take a uid from an agent."""
        del self._live[uid]
        self._renames.pop(live.new_uid or b"", None)
        self._by_connection.get(live.connection, {}).pop(uid, None)
        if live.connection.session is live.session:
            live.connection.session = None

    def _rename(self, old_uid: bytes, uid: bytes, credential: Credential | None) -> Record | None:
        record = self._registry.get(old_uid)
        if record is None or not record.belongs_to(credential):
            return None
        live = self._live.pop(old_uid, None)
        if live is not None:
            self._by_connection.get(live.connection, {}).pop(old_uid, None)
        self._registry.rename(record, uid)
        return record

    def _detach(self, uid: bytes, live: Live) -> None:
        self._live.pop(uid, None)
        self._renames.pop(live.new_uid or b"", None)
        if live.connection.session is live.session:
            live.connection.session = None
        self._contests.holder_left(uid, live)
        record = live.session.record
        if not record.agent_id:
            # It never said who it is, so its record is not worth a place.
            self._registry.remove(uid)
            return
        if record.connected:
            record.connected = False
            self._registry.changed(record)
        self._registry.drop_ghosts(record.known_as)
        if self._log_info:
            _log.info("agent_disconnected", agent_id=record.agent_id)

    # ---- what follows from a report

    def _changed(self, live: Live, reply: Reply, now: float) -> None:
        record, changes = live.session.record, reply.changes
        if changes & Change.CONNECT:
            record.connected, record.said_goodbye = True, False
            record.transport = live.connection.transport_name
            record.session_started_ms = self._clock.unix_ms()
            if self._log_info:
                _log.info("agent_connected", agent_id=record.agent_id, remote_addr=live.caller.remote)
        if changes & Change.DISCONNECT:
            record.connected, record.said_goodbye = False, True
        if reply.predecessor is not None:
            self._registry.remove(reply.predecessor.instance_uid)
        if reply.components is not None:
            self._registry.keep_components(record, reply.components)
        if reply.effective_config is not None:
            self._registry.keep_effective_config(record, reply.effective_config)
        if changes & Change.HEALTH and record.healthy() is False:
            self._metrics.health_failures += 1
        if changes & Change.CONFIG_STATUS:
            self._config_status(live, now)
        if changes & Change.PACKAGES:
            self._package_status(live, now)
        if changes & (Change.OFFERED | Change.PACKAGES_OFFERED):
            self._metrics.offers += 1
        self._stamp(record)
        self._registry.changed(record)
        if changes & (Change.CONNECT | Change.DESCRIPTION):
            self._registry.drop_ghosts(record.known_as)

    def _stamp(self, record: Record) -> None:
        """Add timestamps that the session left out, because it does not know the date."""
        for offering in (record.config, record.packages):
            if offering is not None and offering.needs_stamp:
                offering.stamp(self._clock.unix_ms())

    def _config_status(self, live: Live, now: float) -> None:
        record = live.session.record
        status = record.config_status()
        name = status_name(status.status)
        just_failed = bool(record.config.failures) and not record.config.failures[-1].at_ms
        about_offer = status.last_remote_config_hash == live.session.sent_hash or just_failed
        if name not in ("APPLIED", "FAILED") or not about_offer:
            return
        took_s = max(0.0, now - live.session.offered_at)
        self._metrics.update_seconds.observe(took_s)
        common = {"agent_id": record.agent_id, "config_hash": status.last_remote_config_hash.hex()}
        if name == "APPLIED":
            self._metrics.config_updates["success"] += 1
            if self._log_info:
                _log.info("config_updated", duration_ms=round(took_s * 1000), **common)
        else:
            self._metrics.config_updates["failure"] += 1
            _log.error("config_update_failed", error=status.error_message[:_LOGGED_CHARS], **common)

    def _package_status(self, live: Live, now: float) -> None:
        record = live.session.record
        offering = record.packages
        if offering is None:
            return
        suspects, offering.unverified = offering.unverified, frozenset()
        for package in live.packages.packages if live.packages is not None else ():
            sha256 = package.sha256.hex()
            if package.name in suspects or "" in suspects:
                self._packages.recheck(sha256)
            damaged_since_offer = self._damaged_at.get(sha256, -1.0) >= live.session.packages_offered_at
            if damaged_since_offer and offering.failures and self._forgive(record, self._cohorts.contents_with(sha256)):
                self._offer_if_changed(live, now)
                return
        common = {"agent_id": record.agent_id, "packages_hash": offering.hash.hex()}
        if (
            offering.failures and not offering.failures[-1].at_ms
        ):  # a new failure; the hash may be the next offer's already
            self._metrics.package_updates["failure"] += 1
            _log.error("packages_not_installed", error=offering.failures[-1].error_message[:_LOGGED_CHARS], **common)
        elif offering.status == "APPLIED" and live.installed_hash != offering.hash:
            live.installed_hash = offering.hash
            self._metrics.package_updates["success"] += 1
            if self._log_info:
                _log.info("packages_installed", **common)

    # ---- services for sessions

    def _decide(self, record: Record) -> Offer | None:
        return self._cohorts.offer(record) if self._may_offer() else None

    def _decide_packages(self, record: Record) -> PackagesOffer | None:
        offer = self._cohorts.packages(record) if self._may_offer() else None
        live = self._live.get(record.instance_uid)
        if offer is None or live is None or not self._packages.reachable(live.caller.base_url):
            return None
        return offer if self._packages.available(offer) else None

    def _packages_field(self, record: Record, offer: PackagesOffer) -> bytes:
        live = self._live[record.instance_uid]
        live.packages = offer
        return self._packages.field(offer, live.caller.base_url)

    def _fresh_uid(self) -> bytes:
        return new_instance_uid(self._clock.unix_ms(), os.urandom(10))

    # ---- pushes

    def policy_changed(self) -> None:
        """Offer to every agent whose answer changed."""
        self._spreading.begin()

    def package_damaged(self, sha256: str) -> None:
        """Offer a damaged package file again, once it is here, to the agents that failed to install it."""
        self._damaged_at[sha256] = self._clock.monotonic()
        contents = self._cohorts.contents_with(sha256)
        for record in self._registry:
            self._forgive(record, contents)

    def _forgive(self, record: Record, contents: frozenset[bytes]) -> bool:
        if record.packages is None or not record.packages.failures or not record.packages.forgive(contents):
            return False
        record.cohort = None
        self._registry.changed(record)
        return True

    def _is_live(self, live: Live) -> bool:
        return self._live.get(live.session.record.instance_uid) is live

    def _offer_if_changed(self, live: Live, now: float) -> None:
        if not self._is_live(live):
            return  # the agent has left since the change began to spread
        changes = live.session.consider(now)  # an HTTP agent gets the offer with its next poll
        if changes:
            if changes & (Change.OFFERED | Change.PACKAGES_OFFERED):
                self._metrics.offers += 1
            self._stamp(live.session.record)
            self._registry.changed(live.session.record)
            self._push(live, now)

    def _push(self, live: Live, now: float) -> None:
        if live.connection.writable and (content := live.session.push(now)) is not None:
            live.connection.send(content)

    # ---- housekeeping

    def settle(self) -> None:
        """Call this every second. Agents that have not described themselves in time are decided for by their uid."""
        now = self._clock.monotonic()
        while self._undescribed and self._undescribed[0][0] <= now:
            _, live = self._undescribed.popleft()
            live.awaits_description = False
            record = live.session.record
            if self._live.get(record.instance_uid) is live and not record.agent_description:
                record.use_uid_as_id()
                self._registry.changed(record)
                self._offer_if_changed(live, now)

    def release(self, uid: bytes) -> None:
        """Give up an agent: the control plane says that another node has a newer session with it."""
        live = self._live.get(uid)
        if live is not None:
            self._release_uid(uid, live)
            if not self._by_connection.get(live.connection) and live.connection not in self._shared:
                live.connection.close(CloseReason.RELEASED)
        self._registry.remove(uid)

    def sweep(self) -> None:
        """Call this periodically. Detach agents that left silently, where no connection of their own tells it."""
        now = self._clock.monotonic()
        for uid, live in list(self._live.items()):
            away_after_s = self._away_after_s(live)
            if away_after_s is not None and now - live.session.last_seen > away_after_s:
                self._by_connection.get(live.connection, {}).pop(uid, None)
                self._detach(uid, live)

    def _away_after_s(self, live: Live) -> float | None:
        """The silence after which an agent counts as gone; None if its connection tells that."""
        if live.connection.transport_name == "http":
            return max(_MAX_MISSED * live.interval_s, _OFFLINE_AFTER_S)
        if live.connection not in self._shared:
            return None
        # No known gateway reports that an agent behind it has died.
        if live.session.record.capabilities & capabilities.REPORTS_HEARTBEAT:
            return min(_MAX_MISSED * self._heartbeat_s, self._idle_s)
        return self._idle_s

    async def close(self) -> None:
        """Stop the background work."""
        self._asking.close()
        self._contests.close()
        await self._spreading.close()


def _credential_of(principal: Principal | None) -> Credential | None:
    """What is remembered of a caller in the record of its agent."""
    if principal is None:
        return None
    return Credential(
        principal.subject,
        principal.agent_id,
        principal.method.value,
        principal.credential_id,
        canonical_json(dict(principal.labels)).decode() if principal.labels else "",
        int(principal.expires_at * 1000) if principal.expires_at is not None else 0,
    )
