from __future__ import annotations

import asyncio
import json
from pathlib import Path

import sqlalchemy as sa

from relay.control.engine.notifier import Notifier, send_by_apprise
from relay.control.ledger import notices
from relay.control.ledger.change import Step
from relay.control.rollouts.rollout import RolloutState
from relay.control.storage import schema
from relay.control.storage.database import Database
from relay.observe.metrics import ControlPlaneMetrics
from relay.testing.clock import ManualClock
from tests.control.rollouts.made import rollout, strategy


class Channel:
    def __init__(self) -> None:
        self.got: list[tuple[str, str, str]] = []
        self.takes = True

    def send(self, url: str, title: str, body: str) -> bool:
        self.got.append((url, title, body))
        if url == "boom://":
            raise OSError(url)
        return self.takes


async def opened(folder: Path, *states: RolloutState, channels: tuple[str, ...] = ("team",)) -> Database:
    database = Database(folder / "d")
    await database.open()
    spec = strategy(failure_policy={"notification": list(channels)})
    for state in states:
        async with database.write() as connection:
            await notices.add(connection, [Step(rollout(spec=spec, state=state), reason="3 of 5 failed")], 0)
    return database


async def waiting(database: Database) -> int:
    async with database.read() as connection:
        return int((await connection.execute(sa.select(sa.func.count()).select_from(schema.notices))).scalar_one())


async def test_failures_are_notified_once(tmp_path: Path) -> None:
    database = await opened(
        tmp_path, RolloutState.RUNNING, RolloutState.ROLLING_BACK, channels=("team", "team", "boss")
    )
    channel = Channel()
    metrics = ControlPlaneMetrics()
    notifier = Notifier(
        database, {"team": "x://1", "boss": "x://2"}, clock=ManualClock(), metrics=metrics, send=channel.send
    )
    await notifier.send_due()
    await notifier.send_due()
    assert [url for url, _, _ in channel.got] == ["x://1", "x://2"]
    _, title, body = channel.got[0]
    assert title == "Rollout a-2: rolling back"
    assert body == "ConfigAssignment a, stage canary: 3 of 5 failed"
    assert (await waiting(database), metrics.notices["sent"]) == (0, 2)
    await database.close()


async def test_undelivered_notice_is_retried_later(tmp_path: Path) -> None:
    database = await opened(tmp_path, RolloutState.PAUSED)
    channel, clock = Channel(), ManualClock()
    channel.takes = False
    metrics = ControlPlaneMetrics()
    notifier = Notifier(database, {"team": "x://1"}, clock=clock, metrics=metrics, send=channel.send)
    await notifier.send_due()
    await notifier.send_due()
    assert (len(channel.got), metrics.notices["failed"]) == (1, 1)
    channel.takes = True
    clock.advance(5)
    await notifier.send_due()
    assert (len(channel.got), await waiting(database)) == (2, 0)
    await database.close()


async def test_broken_or_unknown_channel_does_not_stop_others(tmp_path: Path) -> None:
    database = await opened(tmp_path, RolloutState.PAUSED, channels=("unknown", "broken", "team"))
    channel = Channel()
    metrics = ControlPlaneMetrics()
    notifier = Notifier(
        database, {"broken": "boom://", "team": "x://1"}, clock=ManualClock(), metrics=metrics, send=channel.send
    )
    await notifier.send_due()
    assert [url for url, _, _ in channel.got] == ["boom://", "x://1"]
    assert await waiting(database) == 1, "the broken one is tried again"
    await database.close()


async def test_webhook_receives_a_notice(tmp_path: Path) -> None:
    got: asyncio.Queue[dict[str, str]] = asyncio.Queue()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        size = next(
            int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")
        )
        got.put_nowait(json.loads(await reader.readexactly(size)))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        assert await asyncio.to_thread(send_by_apprise, f"json://127.0.0.1:{port}/hook", "title", "body")
        message = await got.get()
    assert (message["title"], message["message"]) == ("title", "body")
    assert not await asyncio.to_thread(send_by_apprise, "nonsense", "title", "body")
