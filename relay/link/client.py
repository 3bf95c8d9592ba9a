"""The node's end of the link: two streams on one channel, reconnected for ever.

Agents never wait for anything here. The node provides `Downward`, which puts a policy in force, and `Upward`, which says
what to report.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from relay.aio.backoff import Backoff
from relay.aio.clock import Clock
from relay.aio.tasks import Tasks, beside
from relay.errors import StoreError, UpstreamError
from relay.link.channel import Credentials, dial, plain
from relay.link.health import LinkHealth
from relay.link.protocol.peer import Peer
from relay.link.protocol.receiver import Candidate, SyncReceiver
from relay.link.protocol.reports import ReportSender
from relay.observe import log
from relay.observe.metrics import NodeMetrics
from relay.pb.relay.v1 import link_pb2, link_pb2_grpc

_log = log.get("opamp-relay.link")
_REFUSALS = frozenset(
    {grpc.StatusCode.ALREADY_EXISTS, grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED}
)
"""Statuses by which the control plane says that it does not want this node."""
_FRESH_S = 95.0
"""Freshness messages come every 30 s. A stream that misses three is dead, whatever TCP says."""


@dataclass(frozen=True, slots=True)
class Downward:
    """How the node handles policy."""

    receiver: SyncReceiver
    renderers: frozenset[int]
    put_in_force: Callable[[Candidate], Awaitable[link_pb2.SyncRequest]]
    """Stores and applies a candidate and returns the acknowledgement. If it raises StoreError, nothing has changed but
    who may connect."""
    confirmed: Callable[[int], None]
    """Called when the policy in force is known to be the newest, with when that was said: Unix milliseconds by the control
    plane's clock, 0 for now."""


@dataclass(frozen=True, slots=True)
class Upward:
    """What the node reports."""

    sender: ReportSender
    next_report: Callable[[], link_pb2.StatusReport | None]
    released: Callable[[bytes], None]
    """Called when the control plane says that another node has this agent now."""
    gather_s: float
    """How long to wait for more changes, so that they are reported together."""


class LinkClient:
    """The link of one node."""

    def __init__(
        self,
        endpoint: str,
        peer: Peer,
        downward: Downward,
        upward: Upward,
        health: LinkHealth,
        *,
        clock: Clock,
        metrics: NodeMetrics,
        credentials: Credentials = plain,
    ) -> None:
        self._endpoint = endpoint
        self._credentials = credentials
        self._is_plain = True
        self._redial = asyncio.Event()
        self._peer = peer
        self._down = downward
        self._up = upward
        self._health = health
        self._clock = clock
        self._metrics = metrics
        self._wake = asyncio.Event()
        self._flushed = asyncio.Event()
        """Set when nothing is left to report or acknowledge."""

    def wake(self) -> None:
        """Send what is waiting to be reported."""
        self._wake.set()

    async def flush(self) -> None:
        """Wait until everything is reported and acknowledged."""
        self._flushed.clear()
        self._wake.set()
        await self._flushed.wait()

    # ---- running

    async def run(self) -> None:
        """Keep both streams up until cancelled."""
        while True:
            self._redial.clear()
            credentials = self._credentials()
            self._is_plain = credentials is None
            async with dial(self._endpoint, credentials) as channel:
                stub = link_pb2_grpc.ControlPlaneStub(channel)
                tasks = Tasks()
                try:
                    for name, stream in (("sync", self._sync), ("report", self._report)):
                        tasks.spawn(self._keep_up(name, stream, stub), name=f"link-{name}")
                    await self._redial.wait()
                finally:
                    await tasks.close()

    def redial(self) -> None:
        """Connect again, with other credentials."""
        self._redial.set()

    async def _keep_up(self, name: str, stream: Callable[[Any], Awaitable[None]], stub: Any) -> None:
        backoff = Backoff(first_s=0.2, most_s=5.0, chance=random.random)
        is_logged = False
        while True:
            started_at = self._clock.monotonic()
            try:
                await stream(stub)
                reason = "closed by the control plane"
            except grpc.aio.AioRpcError as error:
                reason = f"{error.code().name}: {error.details()}"
                if error.code() in _REFUSALS:
                    self._health.refusal = error.details() or "refused"
                elif "CERTIFICATE_VERIFY_FAILED" in (error.details() or ""):
                    self._health.refusal = (
                        "its certificate is not by a CA that this node trusts; join again if that is right"
                    )
                elif error.code() is grpc.StatusCode.UNAVAILABLE:
                    self._health.refusal = ""
            except (UpstreamError, TimeoutError, asyncio.InvalidStateError) as error:
                reason = str(error) or "no message for too long"
            except Exception as error:
                # Whatever happens, a node must reconnect to its control plane.
                _log.exception("link_failed", stream=name)
                reason = repr(error)
            if self._clock.monotonic() - started_at > 10:
                backoff.reset()
                is_logged = False
            if not is_logged:
                is_closed = self._is_plain and "Socket closed" in reason
                hint = {"hint": "a control plane with TLS wants nodes to join: --join TOKEN"} if is_closed else {}
                _log.warning("link_down", stream=name, control_plane=self._endpoint, error=reason, **hint)
                is_logged = True
            await asyncio.sleep(backoff.next_delay_s())

    async def _sync(self, stub: Any) -> None:
        call = stub.Sync()
        try:
            await call.write(self._down.receiver.hello(self._peer, self._down.renderers))
            self._metrics.link_messages["sync_sent"] += 1
            async for response in _until_silent(call, _FRESH_S):
                self._metrics.link_messages["sync_received"] += 1
                if self._health.record_message():
                    _log.info("link_up", control_plane=self._endpoint)
                if response.HasField("freshness") or response.HasField("signed_freshness"):
                    self._freshness(response)
                    continue
                if response.HasField("behind"):
                    version = response.behind.version
                    self._down.receiver.ahead_of = (version.epoch, version.number)
                    continue
                self._down.receiver.ahead_of = None
                answer = self._down.receiver.receive(response.update)
                if isinstance(answer, Candidate):
                    candidate = answer
                    try:
                        answer = await self._down.put_in_force(candidate)
                        if candidate.manifest is None:  # a signed one has no date: a Freshness follows
                            self._down.confirmed(0)
                    except StoreError as error:
                        _log.error("policy_not_stored", error=str(error), manifest=candidate.version)
                        answer = self._down.receiver.refuse(candidate, f"could not be stored: {error}")
                elif answer.ack.refused:
                    self._refused(answer.ack.refused)
                await call.write(answer)
                self._metrics.link_messages["sync_sent"] += 1
        finally:
            self._health.record_down()
            call.cancel()

    def _refused(self, reason: str) -> None:
        """Policy was refused as a whole."""
        event = "link_refused" if self._down.receiver.is_foreign else "policy_refused"
        _log.error(event, control_plane=self._endpoint, reason=reason)

    def _freshness(self, response: link_pb2.SyncResponse) -> None:
        try:
            issued_ms = self._down.receiver.confirms(response, self._clock.unix_ms())
        except ValueError as error:
            _log.error("freshness_refused", control_plane=self._endpoint, reason=str(error))
        else:
            if issued_ms is not None:
                self._down.confirmed(issued_ms)

    async def _report(self, stub: Any) -> None:
        sender = self._up.sender
        sender.restart()
        call = stub.Report()
        first = link_pb2.StatusReport(hello=self._peer.message())
        try:
            async with beside(self._acks(call), name="link-acks") as acks:
                try:
                    await call.write(first)
                    while not acks.done():
                        self._wake.clear()  # before looking, so that a change during the write is not lost
                        report = self._up.next_report()
                        if report is not None:
                            await call.write(report)
                            self._metrics.link_messages["report_sent"] += 1
                            if sender.is_urgent:
                                continue
                        await self._pause(acks)
                    await acks
                except asyncio.InvalidStateError:
                    await acks  # the stream ended during a write; this raises the reason
        finally:
            call.cancel()

    async def _pause(self, acks: asyncio.Task[None]) -> None:
        """Wait for something to report, then briefly for more."""
        async with beside(self._wake.wait(), name="link-wake") as waker:
            await asyncio.wait([waker, acks], return_when=asyncio.FIRST_COMPLETED)
        if not self._up.sender.is_urgent and not self._up.sender.in_flight:
            await asyncio.sleep(self._up.gather_s)

    async def _acks(self, call: Any) -> None:
        async for ack in call:
            self._metrics.link_messages["report_acked"] += 1
            self._health.record_ack()
            sender = self._up.sender
            sender.acknowledged(ack)
            if not (sender.send_status or len(sender) or sender.in_flight):
                self._flushed.set()
            for uid in ack.released:
                self._up.released(uid)
            self._wake.set()


async def _until_silent(call: Any, timeout_s: float) -> AsyncIterator[Any]:
    """Yield the messages of a stream. Raises TimeoutError if none arrives within `timeout_s`."""
    while True:
        async with asyncio.timeout(timeout_s):
            message = await call.read()
        if message is grpc.aio.EOF:
            return
        yield message
