import asyncio

from relay.testing.fault_proxy import FaultProxy
from tests.wire import hang_up, is_gone


async def test_proxy_can_stall_cut_and_mend() -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(100):
            writer.write(data)
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    proxy = FaultProxy("127.0.0.1", server.sockets[0].getsockname()[1])
    await proxy.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    writer.write(b"one")
    assert await reader.readexactly(3) == b"one"
    proxy.stall()
    writer.write(b"two")
    waiting = asyncio.ensure_future(reader.readexactly(3))
    assert not (await asyncio.wait([waiting], timeout=0.1))[0]
    proxy.mend()
    assert await waiting == b"two"
    assert proxy.bytes_forwarded == 12
    proxy.cut()
    assert await is_gone(reader)
    await hang_up(writer)
    refused, other = await asyncio.open_connection("127.0.0.1", proxy.port)
    assert await is_gone(refused)
    await hang_up(other)
    await proxy.stop()
    server.close()
