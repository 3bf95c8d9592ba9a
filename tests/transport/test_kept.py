"""Heads of later requests on a kept-alive connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from relay.pb.opamp.v1 import opamp_pb2 as pb
from tests.conftest import eventually
from tests.transport.stand import Stand, stand
from tests.transport.test_upgrade import HEALTH, POLL, answer, upgrade
from tests.wire import frame, hang_up, is_gone


@asynccontextmanager
async def kept(it: Stand) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", it.port)
    writer.write(HEALTH)
    assert (await answer(reader)).startswith(b"HTTP/1.1 200")
    yield reader, writer
    await hang_up(writer)


def head(size: int) -> bytes:
    """A head of many lines, each of acceptable size."""
    lines = b"".join(b"X-%d: %s\r\n" % (i, b"y" * 990) for i in range(size // 1000))
    return HEALTH[:-2] + lines + b"\r\n"


@pytest.mark.parametrize("pieces", [1, 7])
async def test_later_head_is_bounded_like_the_first(pieces: int) -> None:
    async with stand(max_header_bytes=16 << 10) as it, kept(it) as (reader, writer):
        for _ in range(2):
            writer.write(head(15_000))
            assert (await answer(reader)).startswith(b"HTTP/1.1 200")
        large = head(60_000)
        for i in range(0, len(large), len(large) // pieces):
            writer.write(large[i : i + len(large) // pieces])
            await asyncio.sleep(0.01)
        assert (await answer(reader)).startswith(b"HTTP/1.1 431")
        assert await is_gone(reader)
        assert it.metrics.refused["header_too_large"] == 1
        await eventually(lambda: it.door.places.used == 0)


async def test_partial_later_head_times_out_like_the_first() -> None:
    async with stand(header_timeout_s=0.2) as it, kept(it) as (reader, writer):
        await asyncio.sleep(0.4)
        writer.write(HEALTH[:-2])
        assert (await answer(reader)).startswith(b"HTTP/1.1 408")
        assert await is_gone(reader)


async def test_body_is_not_counted_as_head() -> None:
    message = pb.AgentToServer(instance_uid=b"u" * 16)
    message.custom_message.data = b"x" * 60_000
    content = message.SerializeToString()
    async with stand(max_header_bytes=1 << 10) as it, kept(it) as (reader, writer):
        writer.write(POLL.partition(b"\r\n\r\n")[0].replace(b": 18", b": %d" % len(content)) + b"\r\n\r\n")
        for i in range(0, len(content), 10_000):
            writer.write(content[i : i + 10_000])
            await asyncio.sleep(0.01)
        assert (await answer(reader)).startswith(b"HTTP/1.1 200")
        writer.write(HEALTH)
        assert (await answer(reader)).startswith(b"HTTP/1.1 200")


async def test_data_after_an_upgrade_is_not_a_head() -> None:
    async with stand(max_header_bytes=16 << 10) as it, kept(it) as (reader, writer):
        writer.write(upgrade(it.port))
        writer.write(b"".join(frame(b"\0\x0a\x10" + b"u" * 16) for _ in range(2000)))
        assert (await answer(reader)).startswith(b"HTTP/1.1 101")
