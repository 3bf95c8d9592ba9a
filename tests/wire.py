"""Raw clients for tests: an OpAMP agent over any transport, and a WebSocket controlled byte by byte."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import aiohttp
import grpc.aio

from relay.ids import new_instance_uid
from relay.pb.opamp.v1 import opamp_pb2 as pb
from relay.pb.relay.v1 import agents_pb2_grpc

UPGRADE = (
    "GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n{extra}\r\n"
)
CAPABILITIES = 0x3807
BINARY, TEXT, CONTINUATION, CLOSE, PING, PONG = 0x2, 0x1, 0x0, 0x8, 0x9, 0xA
_left_open: dict[int, Callable[[], Awaitable[object]]] = {}
"""Open client connections: uvloop cannot be closed while there are any."""
_counter = iter(range(1 << 30))


def new_uid() -> bytes:
    """A uid that no other test uses."""
    return new_instance_uid(1_760_000_000_000, next(_counter).to_bytes(10, "big"))


def frame(
    payload: bytes, opcode: int = BINARY, *, fin: bool = True, masked: bool = True, declare: int | None = None
) -> bytes:
    """One WebSocket frame, under a zero mask."""
    size = len(payload) if declare is None else declare
    head = bytes([(0x80 if fin else 0) | opcode])
    bit = 0x80 if masked else 0
    if size < 126:
        head += bytes([bit | size])
    elif size < 65536:
        head += bytes([bit | 126]) + struct.pack(">H", size)
    else:
        head += bytes([bit | 127]) + struct.pack(">Q", size)
    return head + (b"\0\0\0\0" if masked else b"") + payload


async def hang_up(writer: asyncio.StreamWriter) -> None:
    """Reset a connection."""
    writer.transport.abort()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def is_gone(reader: asyncio.StreamReader) -> bool:
    """Whether the other side closes soon, in any way."""
    async with asyncio.timeout(10):
        try:
            return await reader.read(1) == b""
        except ConnectionError:
            return True


async def close_what_is_left() -> None:
    """Close all connections that a failed test left open."""
    for close in list(_left_open.values()):
        with contextlib.suppress(Exception):
            await close()
    _left_open.clear()


class Refused(Exception):
    """The server refused a request; `args` are the status and the head of the answer or its headers."""


class RawSocket:
    """A WebSocket connection at the level of bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        _left_open[id(self)] = self.close
        self.reader = reader
        self.writer = writer

    @classmethod
    async def open(cls, port: int, *, path: str = "/v1/opamp", extra: str = "", ssl: Any = None) -> RawSocket:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=ssl)
        socket = cls(reader, writer)
        writer.write(UPGRADE.format(path=path, port=port, extra=extra).encode())
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        if not head.startswith(b"HTTP/1.1 101"):
            await socket.close()
            raise Refused(int(head.split()[1]), head)
        return socket

    def write(self, data: bytes) -> None:
        self.writer.write(data)

    async def read(self) -> tuple[int, bytes]:
        """(opcode, payload) of the next frame."""
        async with asyncio.timeout(10):
            first, second = await self.reader.readexactly(2)
            size = second & 0x7F
            if size == 126:
                (size,) = struct.unpack(">H", await self.reader.readexactly(2))
            elif size == 127:
                (size,) = struct.unpack(">Q", await self.reader.readexactly(8))
            return first & 0x0F, await self.reader.readexactly(size)

    async def message(self) -> pb.ServerToAgent:
        """The next message; pings before it are answered."""
        opcode, payload = await self.read()
        while opcode == PING:
            self.write(frame(payload, PONG))
            opcode, payload = await self.read()
        assert opcode == BINARY, (opcode, payload)
        assert payload[:1] == b"\0"
        return pb.ServerToAgent.FromString(payload[1:])

    async def close_code(self) -> int:
        """The code of the next close frame; earlier frames are skipped."""
        while True:
            opcode, payload = await self.read()
            if opcode == CLOSE:
                return int.from_bytes(payload[:2], "big")

    async def close(self) -> None:
        _left_open.pop(id(self), None)
        await hang_up(self.writer)


def describe(message: pb.AgentToServer, name: str, **attributes: str) -> None:
    """Add a description to a report."""
    message.agent_description.identifying_attributes.add(key="service.name").value.string_value = "test"
    message.agent_description.identifying_attributes.add(key="service.instance.id").value.string_value = name
    for key, value in attributes.items():
        added = message.agent_description.non_identifying_attributes.add(key=key.replace("_", "."))
        added.value.string_value = value


class Pipe(Protocol):
    """A transport of a test agent."""

    async def exchange(self, message: pb.AgentToServer) -> pb.ServerToAgent: ...
    async def pushed(self) -> pb.ServerToAgent: ...
    async def close(self) -> None: ...


class WebSocketPipe:
    def __init__(self, socket: RawSocket) -> None:
        self.socket = socket

    async def exchange(self, message: pb.AgentToServer) -> pb.ServerToAgent:
        self.socket.write(frame(b"\0" + message.SerializeToString()))
        return await self.socket.message()

    async def pushed(self) -> pb.ServerToAgent:
        return await self.socket.message()

    async def close(self) -> None:
        await self.socket.close()


class HttpPipe:
    def __init__(self, url: str, headers: dict[str, str] | None = None) -> None:
        self.url = url
        self.client = aiohttp.ClientSession(headers={"Content-Type": "application/x-protobuf", **(headers or {})})
        _left_open[id(self)] = self.close

    async def exchange(self, message: pb.AgentToServer) -> pb.ServerToAgent:
        async with self.client.post(self.url, data=message.SerializeToString()) as answer:
            if answer.status != 200:
                raise Refused(answer.status, dict(answer.headers))
            assert answer.headers["Content-Type"] == "application/x-protobuf"
            return pb.ServerToAgent.FromString(await answer.read())

    async def pushed(self) -> pb.ServerToAgent:
        raise AssertionError("nothing is pushed over HTTP")

    async def close(self) -> None:
        _left_open.pop(id(self), None)
        await self.client.close()


class GrpcPipe:
    def __init__(self, port: int, headers: dict[str, str] | None = None) -> None:
        self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
        metadata = [(name.lower(), value) for name, value in (headers or {}).items()]
        self.call: Any = agents_pb2_grpc.AgentStreamStub(self.channel).Connect(metadata=metadata)
        _left_open[id(self)] = self.close

    async def exchange(self, message: pb.AgentToServer) -> pb.ServerToAgent:
        try:
            await self.call.write(message)
        except grpc.aio.AioRpcError:  # it was refused before this was on its way; the call knows how
            raise Refused(await self.call.code()) from None
        return await self.pushed()

    async def pushed(self) -> pb.ServerToAgent:
        async with asyncio.timeout(10):
            try:
                message = await self.call.read()
            except grpc.aio.AioRpcError as error:
                raise Refused(error.code()) from None
        if not isinstance(message, pb.ServerToAgent):
            raise Refused(await self.call.code())
        return message

    async def close(self) -> None:
        _left_open.pop(id(self), None)
        self.call.cancel()
        await self.channel.close()


class TestAgent:
    """An agent whose messages the test writes."""

    __test__ = False

    def __init__(self, pipe: Pipe, name: str = "", uid: bytes | None = None) -> None:
        self.pipe = pipe
        self.uid = uid or new_uid()
        self.name = name or f"agent-{next(_counter)}"
        self.sequence = -1

    @classmethod
    async def over(
        cls, transport: str, ports: dict[str, int], name: str = "", uid: bytes | None = None, *, token: str = ""
    ) -> TestAgent:
        """Connect an agent over `websocket`, `http` or `grpc`, without sending a report.

        Raises:
            Refused: over WebSocket; elsewhere a refusal comes with the first report.
        """
        pipe: Pipe
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        if transport == "websocket":
            extra = "".join(f"{key}: {value}\r\n" for key, value in headers.items())
            pipe = WebSocketPipe(await RawSocket.open(ports["websocket"], extra=extra))
        elif transport == "http":
            pipe = HttpPipe(f"http://127.0.0.1:{ports['http']}/v1/opamp", headers)
        else:
            pipe = GrpcPipe(ports["grpc"], headers)
        return cls(pipe, name, uid)

    def message(self, **parts: Any) -> pb.AgentToServer:
        self.sequence += 1
        parts.setdefault("capabilities", CAPABILITIES)
        return pb.AgentToServer(instance_uid=self.uid, sequence_num=self.sequence, **parts)

    async def hello(self, status: pb.RemoteConfigStatus | None = None, /, **attributes: str) -> pb.ServerToAgent:
        """Send the first report: the full state."""
        message = self.message(health=pb.ComponentHealth(healthy=True))
        message.remote_config_status.CopyFrom(status or pb.RemoteConfigStatus())
        describe(message, self.name, **attributes)
        return await self.pipe.exchange(message)

    async def heartbeat(self) -> pb.ServerToAgent:
        return await self.pipe.exchange(self.message())

    async def report(self, **parts: Any) -> pb.ServerToAgent:
        return await self.pipe.exchange(self.message(**parts))

    async def applied(self, config_hash: bytes, *, healthy: bool | None = None) -> pb.ServerToAgent:
        status = pb.RemoteConfigStatus(last_remote_config_hash=config_hash, status=pb.RemoteConfigStatuses_APPLIED)
        health = {} if healthy is None else {"health": pb.ComponentHealth(healthy=healthy)}
        return await self.report(remote_config_status=status, **health)

    async def failed(self, config_hash: bytes, reason: str) -> pb.ServerToAgent:
        status = pb.RemoteConfigStatus(
            last_remote_config_hash=config_hash, status=pb.RemoteConfigStatuses_FAILED, error_message=reason
        )
        return await self.report(remote_config_status=status)

    async def close(self) -> None:
        await self.pipe.close()
