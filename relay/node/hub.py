"""Where connections, sessions and policy meet. Implements `transport.ports.Agents`.

Owns the map of live agents. Every method is synchronous and runs on the one loop: no await stands between reading and
writing a map. Asking for full state is `asking`, a policy change on its way to all is `spreading`.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable
from typing import Protocol

from relay.aio.clock import Clock
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
from relay.opamp.record import Change, Record
from relay.opamp.session import Reply, Services, Session
from relay.pb.opamp.v1 import opamp_pb2 as pb
from relay.transport.ports import Caller, CloseReason, Connection

_log = log.get("opamp-relay.hub")
_DESCRIBE_WITHIN_S = 10.0
_POLLS = 3
"""Polls or heartbeats that an agent may leave out."""
_OFFLINE_AFTER_S = 90.0
"""An HTTP agent does not count as gone before this."""
_LOGGED_CHARS = 500
"""Of what an agent says; the whole of it is in its record."""
_SAY_AGAIN_S = 10.0
_ALIVE_S = 60.0
"""Two heartbeats: who was silent for longer has perhaps lost its connection without our knowing."""
_IGNORED_UIDS = 2
"""How often a client may ignore that it was given another uid."""


class PackageSource(Protocol):
    """Where the packages that agents are offered come from; see `relay.node.packages`."""

    def available(self, offer: PackagesOffer) -> bool:
        """Whether all files of an offer can be downloaded from here now; if not, somebody sees to it."""
        ...

    def field(self, offer: PackagesOffer, base_url: str) -> bytes:
        """The offer encoded, with addresses below `base_url`."""
        ...

    def reachable(self, base_url: str) -> bool:
        """Whether an agent that reached this node at `base_url` (empty: nobody knows) can download from it."""
        ...

    def doubt(self, sha256: str) -> None:
        """An agent could not install a file."""
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
        """New uid → old uid of agents that asked for a proper one and have not used it yet."""
        self._ignored: dict[Connection, int] = {}
        self._bad: dict[Connection, int] = {}
        """Bad messages of nobody that is attached there."""
        self._shared: set[Connection] = set()
        """Connections that ever carried a second agent: a proxy's."""
        self._contests = Contests(won=self._newcomer_won, lost=self._newcomer_lost)
        self._undescribed: deque[tuple[float, Live]] = deque()
        """(until when they have time to say who they are, agents), the earliest first."""
        self._asking = Asking(
            full_state_per_second, clock=clock, metrics=metrics, is_live=self._is_live, push=self._push
        )
        self._spreading = Spreading(registry, clock=clock, everybody=self._live.values, offer=self._offer_if_changed)
        self._say_duplicate_at = 0.0
        self._damaged_at: dict[str, float] = {}
        """SHA-256 of package files → when they were found not to be what they should be."""
        self._telling = log.enabled("info")
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
        """How long it took to offer the last policy change to everybody connected."""
        return self._spreading.last_s

    @property
    def asking(self) -> int:
        """Agents that wait to be asked for their full state."""
        return len(self._asking)

    @property
    def connected(self) -> int:
        """Agents with a session."""
        return len(self._live)

    # ---- ports.Agents

    def receive(self, connection: Connection, caller: Caller, content: bytes) -> bytes:
        """Answer one message; see `ports.Agents`."""
        now = self._clock.monotonic()
        named = content[2:18]
        live = self._live.get(named)
        if live is not None and self._registry.get(named) is not live.session.record:
            self._let_go(named, live)  # its record was given up since it said goodbye: it begins anew
            live = None
        if live is not None and self._speaks_alone(named, live, connection):
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
        live = self._live.get(uid)
        if live is not None:
            refusal = self._contend(live, message, connection, caller, content)
            if refusal is not None:
                return refusal
            live = self._live.get(uid)  # not where the agent is now another, or on another connection
        if live is None:
            live = self._attach(connection, caller, uid)
        live.caller = caller
        live.polled(live.session.last_seen, now)
        if connection.transport_name != "http":
            connection.session = live.session
        answer = live.session.report(message, now)
        if answer.new_uid is not None:
            self._renames.pop(live.new_uid or b"", None)
            live.new_uid = answer.new_uid
            self._renames[answer.new_uid] = uid
        if answer.changes:
            self._changed(live, answer, now)
        if live.session.needs_full:
            self._asking.later(live)
        if not live.session.record.agent_description and not live.waiting:
            live.waiting = True
            self._undescribed.append((now + _DESCRIBE_WITHIN_S, live))
        return answer.body

    def _speaks_alone(self, uid: bytes, live: Live, connection: Connection) -> bool:
        """Whether a heartbeat of an agent is answered without another look at who sent it."""
        return live.connection is connection and not connection.header and not self._contests.has(uid)

    def misbehaved(self, connection: Connection, uid: bytes) -> None:
        """See `ports.Agents`."""
        live = self._by_connection.get(connection, {}).get(uid)
        if live is None:
            number = self._bad[connection] = self._bad.get(connection, 0) + 1
        else:
            number = live.misbehaved()
        if number < self._max_bad:
            return
        if connection not in self._shared:
            connection.close(CloseReason.BAD_MESSAGES)
        elif live is not None:
            self._by_connection[connection].pop(uid)
            self._detach(uid, live)

    def resumed(self, connection: Connection) -> None:
        """Send what waited while the connection could not be written to."""
        for live in list(self._by_connection.get(connection, {}).values()):
            self._push(live, self._clock.monotonic())

    def disconnected(self, connection: Connection) -> None:
        """Detach the agents whose current connection this is; those that moved on stay."""
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
        """A message under a uid that is taken: the answer to who cannot have it, None where the message is to be taken."""
        uid = message.instance_uid
        elsewhere = live.connection is not connection
        verdict = self._contests.hear(uid, live, message, connection)
        if verdict is Verdict.NEWCOMER:
            return self._refuse_uid(connection, caller, uid)
        if verdict is Verdict.EITHER and not elsewhere:
            return body.uid_field(uid) + (body.FULL_STATE if self._asking.may_ask(self._clock.monotonic()) else b"")
        if verdict in (Verdict.UNKNOWN, Verdict.RETURNED) and not elsewhere and self._contests.has(uid):
            live.session.ask_at_once()
        if verdict is Verdict.RETURNED and elsewhere:
            self._let_go(uid, live)
            self._newcomer_lost(uid, live.connection, live.caller)
        elif verdict is Verdict.SAME and elsewhere:
            self._replace(uid, live)
        elif elsewhere and not message.HasField("agent_description"):
            if self._is_alive(live, connection):
                # It keeps its uid until the newcomer has said who it is.
                return body.uid_field(uid) + (body.FULL_STATE if self._asking.may_ask(self._clock.monotonic()) else b"")
            self._replace(uid, live)
        elif elsewhere:
            ping = live.connection not in self._shared
            self._contests.challenge(uid, live, message, Arrival(connection, caller, content), ping=ping)
            return body.uid_field(uid)
        return None

    def _newcomer_won(self, uid: bytes, holder: Live, arrival: Arrival) -> None:
        if self._live.get(uid) is holder:
            self._replace(uid, holder)
        if arrival.connection.transport_name == "http":
            # An answer would reach nobody. Its next poll begins its session, and it is to say anew who it is.
            holder.session.record.sequence_exact = False
            return
        with contextlib.suppress(AgentError, Overloaded):
            arrival.connection.send(self.receive(*arrival))

    def _newcomer_lost(self, uid: bytes, connection: Connection, caller: Caller) -> None:
        if connection.writable:  # over HTTP it is told with its next message
            connection.send(self._refuse_uid(connection, caller, uid))

    def _attach(self, connection: Connection, caller: Caller, uid: bytes) -> Live:
        """Begin a session."""
        mine = self._by_connection.setdefault(connection, {})
        if connection.transport_name != "http":
            if len(mine) >= self._max_per_connection:
                self._metrics.refused["agents_per_connection"] += 1
                raise Overloaded(f"a connection carries at most {self._max_per_connection} agents")
            if mine:
                self._shared.add(connection)
        record = self._registry.get(uid)
        old_uid = self._renames.pop(uid, None)
        if record is None and old_uid is not None:
            record = self._rename(old_uid, uid)
        if record is None:
            if len(self._registry) >= self._max_agents and not self._registry.make_room(self._max_agents):
                self._metrics.refused["agents"] += 1
                raise Overloaded(f"this node already has {self._max_agents} agents", retry_after_s=self._retry_after_s)
            record = self._registry.new(uid)
        live = Live(Session(record, self._services, connection.header), connection, caller)
        self._live[uid] = mine[uid] = live
        return live

    def _is_alive(self, live: Live, than: Connection) -> bool:
        """Whether an agent was heard lately on a connection of its own, another than this one."""
        silent_s = self._clock.monotonic() - live.session.last_seen
        return live.connection is not than and live.connection.writable and silent_s < _ALIVE_S

    def _refuse_uid(self, connection: Connection, caller: Caller, uid: bytes) -> bytes:
        ignored = self._ignored.get(connection, 0) + 1
        self._metrics.bad_messages["duplicate_uid"] += 1
        if connection.transport_name != "http":
            self._ignored[connection] = ignored
            if ignored > _IGNORED_UIDS and connection not in self._shared:
                connection.close(CloseReason.DUPLICATE_UID)
        now = self._clock.monotonic()
        if now >= self._say_duplicate_at:
            self._say_duplicate_at = now + _SAY_AGAIN_S
            _log.warning("duplicate_uid", instance_uid=format_uid(uid), remote_addr=caller.remote)
        return body.uid_field(uid) + body.identification_field(self._fresh_uid())

    def _replace(self, uid: bytes, other: Live) -> None:
        """The same agent is on another connection now: the one before is of no use, unless it is a proxy's."""
        self._let_go(uid, other)
        if not self._by_connection.get(other.connection) and other.connection not in self._shared:
            other.connection.close(CloseReason.REPLACED)

    def _let_go(self, uid: bytes, live: Live) -> None:
        """The uid is no longer this one's."""
        del self._live[uid]
        self._renames.pop(live.new_uid or b"", None)
        self._by_connection.get(live.connection, {}).pop(uid, None)
        if live.connection.session is live.session:
            live.connection.session = None

    def _rename(self, old_uid: bytes, uid: bytes) -> Record | None:
        record = self._registry.get(old_uid)
        if record is None:
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
        self._contests.gone(uid, live)
        record = live.session.record
        if not record.agent_id:
            # It never said who it is: nothing worth a place among those that did.
            self._registry.remove(uid)
            return
        if record.connected:
            record.connected = False
            self._registry.changed(record)
        self._registry.drop_ghosts(record.agent_id)
        if self._telling:
            _log.info("agent_disconnected", agent_id=record.agent_id)

    # ---- what follows from a report

    def _changed(self, live: Live, reply: Reply, now: float) -> None:
        record, changes = live.session.record, reply.changes
        if changes & Change.CONNECT:
            record.connected, record.said_goodbye = True, False
            record.transport = live.connection.transport_name
            record.session_started_ms = self._clock.unix_ms()
            if self._telling:
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
            self._registry.drop_ghosts(record.agent_id)

    def _stamp(self, record: Record) -> None:
        """Date what the session, which has no calendar, has left undated."""
        for offering in (record.config, record.packages):
            if offering is not None and offering.undated:
                offering.stamp(self._clock.unix_ms())

    def _config_status(self, live: Live, now: float) -> None:
        record = live.session.record
        status = record.config_status()
        known = status_name(status.status)
        just_failed = bool(record.config.failed) and not record.config.failed[-1].at_ms
        about_offer = status.last_remote_config_hash == live.session.sent_hash or just_failed
        if known not in ("APPLIED", "FAILED") or not about_offer:
            return
        took_s = max(0.0, now - live.session.offered_at)
        self._metrics.update_seconds.observe(took_s)
        common = {"agent_id": record.agent_id, "config_hash": status.last_remote_config_hash.hex()}
        if known == "APPLIED":
            self._metrics.config_updates["success"] += 1
            if self._telling:
                _log.info("config_updated", duration_ms=round(took_s * 1000), **common)
        else:
            self._metrics.config_updates["failure"] += 1
            _log.error("config_update_failed", error=status.error_message[:_LOGGED_CHARS], **common)

    def _package_status(self, live: Live, now: float) -> None:
        record = live.session.record
        offering = record.packages
        if offering is None:
            return
        doubted, offering.doubted = offering.doubted, frozenset()
        for package in live.packages.packages if live.packages is not None else ():
            sha256 = package.sha256.hex()
            if package.name in doubted or "" in doubted:
                self._packages.doubt(sha256)
            was_damaged = self._damaged_at.get(sha256, -1.0) >= live.session.packages_offered_at
            if was_damaged and offering.failed and self._forgive(record, self._cohorts.contents_with(sha256)):
                self._offer_if_changed(live, now)
                return
        common = {"agent_id": record.agent_id, "packages_hash": offering.hash.hex()}
        if offering.failed and not offering.failed[-1].at_ms:  # what it is offered instead stands there already
            self._metrics.package_updates["failure"] += 1
            _log.error("packages_not_installed", error=offering.failed[-1].error_message[:_LOGGED_CHARS], **common)
        elif offering.status == "APPLIED" and live.told != offering.hash:
            live.told = offering.hash
            self._metrics.package_updates["success"] += 1
            if self._telling:
                _log.info("packages_installed", **common)

    # ---- lent to sessions

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

    # ---- out

    def policy_changed(self) -> None:
        """Offer to every agent whose answer changed."""
        self._spreading.begin()

    def was_damaged(self, sha256: str) -> None:
        """A package file was not what it should be: who failed at it is offered it again when it is here."""
        self._damaged_at[sha256] = self._clock.monotonic()
        contents = self._cohorts.contents_with(sha256)
        for record in self._registry:
            self._forgive(record, contents)

    def _forgive(self, record: Record, contents: frozenset[bytes]) -> bool:
        if record.packages is None or not record.packages.failed or not record.packages.forgive(contents):
            return False
        record.cohort = None
        self._registry.changed(record)
        return True

    def _is_live(self, live: Live) -> bool:
        return self._live.get(live.session.record.instance_uid) is live

    def _offer_if_changed(self, live: Live, now: float) -> None:
        if not self._is_live(live):
            return  # gone since the change began to spread
        changes = live.session.consider(now)  # an HTTP agent takes what waits at its next poll
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
        """Every second or so: agents that were asked who they are and do not say so are decided by what is known."""
        now = self._clock.monotonic()
        while self._undescribed and self._undescribed[0][0] <= now:
            _, live = self._undescribed.popleft()
            live.waiting = False
            record = live.session.record
            if self._live.get(record.instance_uid) is live and not record.agent_description:
                record.call_by_uid()
                self._registry.changed(record)
                self._offer_if_changed(live, now)

    def release(self, uid: bytes) -> None:
        """The control plane says that another node has this agent, by a newer session."""
        live = self._live.get(uid)
        if live is not None:
            self._let_go(uid, live)
            if not self._by_connection.get(live.connection) and live.connection not in self._shared:
                live.connection.close(CloseReason.RELEASED)
        self._registry.remove(uid)

    def sweep(self) -> None:
        """Now and then: agents that are gone without a word. A connection of its own says when an agent goes."""
        now = self._clock.monotonic()
        for uid, live in list(self._live.items()):
            away_after_s = self._away_after_s(live)
            if away_after_s is not None and now - live.session.last_seen > away_after_s:
                self._by_connection.get(live.connection, {}).pop(uid, None)
                self._detach(uid, live)

    def _away_after_s(self, live: Live) -> float | None:
        """The silence after which an agent counts as gone; None where its connection tells."""
        if live.connection.transport_name == "http":
            return max(_POLLS * live.interval_s, _OFFLINE_AFTER_S)
        if live.connection not in self._shared:
            return None
        # Neither of the known gateways tells that an agent behind it has died.
        if live.session.record.capabilities & capabilities.REPORTS_HEARTBEAT:
            return min(_POLLS * self._heartbeat_s, self._idle_s)
        return self._idle_s

    async def close(self) -> None:
        """Stop what runs in the background."""
        self._asking.close()
        self._contests.close()
        await self._spreading.close()
