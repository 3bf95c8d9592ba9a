"""Notices to users. Each is stored together with the change that causes it, and sent afterwards through apprise.

The URL of a channel contains its secret, so it is never logged or shown.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import sqlalchemy as sa

from relay.aio.clock import Clock
from relay.control.storage import schema
from relay.control.storage.database import Database
from relay.errors import StoreError
from relay.observe import log
from relay.observe.metrics import ControlPlaneMetrics

_log = log.get("opamp-relay.notify")
_FIRST_RETRY_MS = 5_000
_MAX_RETRY_MS = 15 * 60_000
_GIVE_UP_AFTER = 50
_EVERY_S = 1.0

Send = Callable[[str, str, str], bool]
"""(channel URL, title, body) → whether it was accepted. It may block, as it runs in a thread."""


def send_by_apprise(url: str, title: str, body: str) -> bool:
    """Send one notice."""
    import apprise  # slow to import, and most control planes have no channels

    sender = apprise.Apprise()
    return bool(sender.add(url)) and bool(sender.notify(title=title, body=body))


class Notifier:
    """Sends queued notices.

    Args:
        channels: name → URL, from the settings.
    """

    def __init__(
        self,
        database: Database,
        channels: Mapping[str, str],
        *,
        clock: Clock,
        metrics: ControlPlaneMetrics,
        send: Send = send_by_apprise,
    ) -> None:
        self._database = database
        self._channels = channels
        self._clock = clock
        self._metrics = metrics
        self._sent: set[int] = set()
        """Notices that were sent but could not be deleted; they are not sent again."""
        self._send = send

    async def run(self) -> None:
        """Send until cancelled."""
        while True:
            await asyncio.sleep(_EVERY_S)
            try:
                await self.send_due()
            except StoreError as error:
                _log.error("notices_not_read", error=str(error))

    async def send_due(self) -> None:
        """Send the notices that are due. Failed ones are retried with increasing delay."""
        now_ms = self._clock.unix_ms()
        query = sa.select(schema.notices).where(schema.notices.c.next_ms <= now_ms).order_by(schema.notices.c.number)
        async with self._database.read() as connection:
            due = (await connection.execute(query.limit(20))).all()
        for notice in due:
            url = self._channels.get(notice.channel)
            if url is None:
                _log.warning("notice_without_channel", channel=notice.channel, title=notice.title)
            elif notice.number not in self._sent:
                if not await asyncio.to_thread(self._try_send, url, notice.title, notice.body):
                    await self._postpone(notice.number, notice.attempts + 1, notice.channel)
                    continue
                self._metrics.notices["sent"] += 1
                self._sent.add(notice.number)
            async with self._database.write() as connection:
                await connection.execute(sa.delete(schema.notices).where(schema.notices.c.number == notice.number))
            self._sent.discard(notice.number)

    def _try_send(self, url: str, title: str, body: str) -> bool:
        try:
            return self._send(url, title, body)
        except Exception as error:  # plug-ins may raise anything; the text may contain the URL
            _log.error("notice_failed", error=type(error).__name__)
            return False

    async def _postpone(self, number: int, attempts: int, channel: str) -> None:
        self._metrics.notices["failed"] += 1
        wait_ms = min(_FIRST_RETRY_MS * 2 ** (attempts - 1), _MAX_RETRY_MS)
        _log.warning("notice_not_taken", channel=channel, attempts=attempts, again_in_s=wait_ms // 1000)
        is_notice = schema.notices.c.number == number
        async with self._database.write() as connection:
            if attempts >= _GIVE_UP_AFTER:
                await connection.execute(sa.delete(schema.notices).where(is_notice))
                return
            next_ms = self._clock.unix_ms() + wait_ms
            await connection.execute(
                sa.update(schema.notices).where(is_notice).values(attempts=attempts, next_ms=next_ms)
            )
