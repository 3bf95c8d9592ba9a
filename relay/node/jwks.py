"""The keys of an issuer of tokens, from its JSON Web Key Set: fetched in the background, the last good set kept on disk.

Nothing ever waits for the issuer: a token of a key that is not known yet is refused, and the set fetched soon after.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path

import aiohttp

from relay.aio.answers import body_of
from relay.aio.clock import Clock
from relay.auth.tokens import VerificationKey, key_set
from relay.observe import log
from relay.store.private import write_private

_log = log.get("opamp-relay.auth")
FILE = "jwks.json"
_PERIOD_S = 300.0
_LEAST_S = 30.0
"""The least time between two fetches for keys that are not known."""
_TIMEOUT_S = 10.0
_MAX_BYTES = 1 << 20


class KeySetSource:
    """Fetches a key set again and again.

    Args:
        file: where the last good set is kept.
        changed: called with the keys whenever they have changed.
    """

    def __init__(
        self, url: str, file: Path, *, clock: Clock, changed: Callable[[tuple[VerificationKey, ...]], None]
    ) -> None:
        self._url = url
        self._file = file
        self._clock = clock
        self._changed = changed
        self._content = b""
        self._wanted = asyncio.Event()
        self._fetched_at: float | None = None
        self.problem = ""
        """Why the set could not be fetched; empty while all is well."""

    def load(self) -> None:
        """Use the set on disk, if there is one."""
        try:
            content = self._file.read_bytes()
            keys = key_set(json.loads(content))
        except FileNotFoundError:
            self.problem = "has not been fetched yet"
            return
        except (OSError, ValueError, RecursionError) as error:
            _log.error("jwks_unreadable", file=str(self._file), error=str(error))
            self.problem = "has not been fetched yet"
            return
        self._content = content
        self._changed(keys)

    @property
    def age_s(self) -> float:
        """Seconds since the set was fetched; infinite before."""
        return float("inf") if self._fetched_at is None else self._clock.monotonic() - self._fetched_at

    def want(self) -> None:
        """A token names a key that is not in the set: fetch it soon."""
        self._wanted.set()

    async def run(self) -> None:
        """Fetch until cancelled."""
        while True:
            self._wanted.clear()  # before the fetch: what is wanted from now on may not be in it
            await self.fetch()
            await asyncio.sleep(_LEAST_S)
            try:
                async with asyncio.timeout(_PERIOD_S - _LEAST_S):
                    await self._wanted.wait()
            except TimeoutError:
                continue

    async def fetch(self) -> None:
        """Fetch the set once. If that fails, the keys stay as they are."""
        try:
            content = await self._get()
            keys = key_set(json.loads(content))
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError, RecursionError) as error:
            reason = str(error) or "no answer in time"
            if reason != self.problem:
                _log.error("jwks_not_fetched", url=self._url, error=reason)
            self.problem = reason
            return
        self._fetched_at, self.problem = self._clock.monotonic(), ""
        if content == self._content:
            return
        self._content = content
        try:
            write_private(self._file, content)
        except OSError as error:
            _log.error("jwks_not_stored", file=str(self._file), error=error.strerror)
        _log.info("jwks_changed", url=self._url, keys=len(keys))
        self._changed(keys)

    async def _get(self) -> bytes:
        timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
        context: ssl.SSLContext | bool = ssl.create_default_context() if self._url.startswith("https:") else True
        async with (
            aiohttp.ClientSession(timeout=timeout) as client,
            client.get(self._url, allow_redirects=False, ssl=context) as response,
        ):
            if response.status != HTTPStatus.OK:
                raise ValueError(f"status {response.status}")
            return await body_of(response, _MAX_BYTES)
