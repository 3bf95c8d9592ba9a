"""A TCP proxy whose cable can be cut, stalled or refused while a test runs."""

from __future__ import annotations

import asyncio
import contextlib

from relay.aio.tasks import Tasks


class FaultProxy:
    """Forwards a local port to a target, until told otherwise."""

    def __init__(self, target_host: str, target_port: int) -> None:
        self.target = (target_host, target_port)
        self.port = 0
        self._server: asyncio.Server | None = None
        self._tasks = Tasks()
        self._open: set[asyncio.StreamWriter] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self.refusing = False
        """New connections are closed at once."""
        self.bytes_forwarded = 0

    async def start(self, port: int = 0) -> None:
        """Listen on loopback."""
        self._server = await asyncio.start_server(self._accepted, "127.0.0.1", port)
        self.port = self._server.sockets[0].getsockname()[1]

    def cut(self) -> None:
        """Reset every connection and refuse new ones until `mend`."""
        self.refusing = True
        for writer in list(self._open):
            writer.transport.abort()

    def mend(self) -> None:
        """Accept and forward again."""
        self.refusing = False
        self._flowing.set()

    def stall(self) -> None:
        """Let nothing through, without closing: a cable that was pulled."""
        self._flowing.clear()

    async def stop(self) -> None:
        """Close everything."""
        if self._server is not None:
            self._server.close()
        self.cut()
        await self._tasks.close()

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refusing:
            writer.transport.abort()
            return
        try:
            there_reader, there_writer = await asyncio.open_connection(*self.target)
        except OSError:
            writer.transport.abort()
            return
        self._open |= {writer, there_writer}
        self._tasks.spawn(self._pump(reader, there_writer), name="proxy-up")
        self._tasks.spawn(self._pump(there_reader, writer), name="proxy-down")

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                await self._flowing.wait()
                self.bytes_forwarded += len(data)
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            self._open.discard(writer)
            with contextlib.suppress(OSError):
                writer.close()
