import asyncio
import contextlib
from typing import Any

import grpc
import grpc.aio
import pytest

from relay.aio.clock import SystemClock
from relay.link.protocol.peer import Peer
from relay.link.server import LinkServer
from relay.pb.relay.v1 import link_pb2, link_pb2_grpc
from tests.conftest import TEMPLATE, Programs, apply, assignment


@pytest.mark.parametrize("method", ["Sync", "Report"])
async def test_stream_must_begin_with_a_hello(programs: Programs, method: str) -> None:
    plane = await programs.control_plane()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{plane.ports['link']}") as channel:
        stub: Any = link_pb2_grpc.ControlPlaneStub(channel)
        call = getattr(stub, method)()
        await call.write(link_pb2.SyncRequest() if method == "Sync" else link_pb2.StatusReport(sequence=1))
        assert await call.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_third_party_node_gets_policy_freshness_and_differences(programs: Programs) -> None:
    plane = await programs.control_plane()
    await apply(plane, TEMPLATE, assignment("a"))
    async with grpc.aio.insecure_channel(f"127.0.0.1:{plane.ports['link']}") as channel:
        stub: Any = link_pb2_grpc.ControlPlaneStub(channel)
        call = stub.Sync()
        hello = link_pb2.SyncHello(node=link_pb2.NodeIdentity(region="eu", name="n"))
        await call.write(link_pb2.SyncRequest(hello=hello))
        first = (await call.read()).update
        assert {r.name for r in first.resources} == {"ConfigTemplate/basic@v1", "ConfigAssignment/a", "KeySet/trust"}
        assert first.manifest.region == "eu"
        assert (await call.read()).freshness.version == first.manifest.version
        await call.write(link_pb2.SyncRequest(ack=link_pb2.SyncAck(nonce=first.nonce)))
        await apply(plane, assignment("a", rate=2))
        second = (await call.read()).update
        assert [r.name for r in second.resources] == ["ConfigAssignment/a"]
        assert second.manifest.version.number == first.manifest.version.number + 1
        call.cancel()


async def ending(call: Any) -> str:
    """Read a stream to its end. Returns what the server says of it."""
    with contextlib.suppress(grpc.aio.AioRpcError):
        while await call.read() is not grpc.aio.EOF:
            pass
    return str(await call.details())


async def test_newest_stream_of_a_node_wins_where_the_store_is_the_same(programs: Programs) -> None:
    plane = await programs.control_plane()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{plane.ports['link']}") as channel:
        stub: Any = link_pb2_grpc.ControlPlaneStub(channel)

        async def sync(incarnation: str, installation: str) -> Any:
            call = stub.Sync()
            node = link_pb2.NodeIdentity(region="eu", name="n", incarnation=incarnation, installation=installation)
            await call.write(link_pb2.SyncRequest(hello=link_pb2.SyncHello(node=node)))
            return call

        first = await sync("1", "store")
        assert (await first.read()).HasField("update")
        other = await sync("2", "another")
        with pytest.raises(grpc.aio.AioRpcError, match="another node is already connected"):
            await other.read()
        second = await sync("3", "store")
        assert (await second.read()).HasField("update")
        assert await ending(first) == "a newer process of this node has connected"
        second.cancel()


class SlowUpstream:
    """A control plane that takes its time to store a report, whatever happens to the stream."""

    def __init__(self) -> None:
        self.storing = asyncio.Event()
        self.stored = asyncio.Event()

    def admit(self, node: Peer) -> None:
        """Everybody."""

    async def node_reporting(self, node: Peer) -> None:
        """Nobody is refused."""

    def node_gone(self, node: Peer) -> None:
        """Nothing is kept."""

    async def report(self, node: Peer, report: link_pb2.StatusReport) -> link_pb2.ReportAck:
        self.storing.set()
        while not self.stored.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await self.stored.wait()
        return link_pb2.ReportAck(sequence=report.sequence)


async def test_node_is_refused_while_its_report_is_stored() -> None:
    refusal, upstream = "", SlowUpstream()
    identify = lambda _: refusal or ("eu", "one")  # noqa: E731
    server = LinkServer(upstream, SystemClock(), identify)  # type: ignore[arg-type]
    await server.start("127.0.0.1:0")
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        stub: Any = link_pb2_grpc.ControlPlaneStub(channel)
        call = stub.Report()
        await call.write(link_pb2.StatusReport(hello=Peer("eu", "one").message()))
        await call.write(link_pb2.StatusReport(sequence=1))
        await upstream.storing.wait()
        refusal = "node eu/one is revoked"
        for _ in range(3):  # as the watcher does, twice a second
            await server.end_refused()
        upstream.stored.set()
        assert await ending(call) == "node eu/one is revoked"
    await server.stop()
