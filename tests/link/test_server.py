import contextlib
from typing import Any

import grpc
import grpc.aio
import pytest

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
