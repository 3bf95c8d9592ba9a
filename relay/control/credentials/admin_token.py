"""The file `admin-token` in the data folder: the first token, and the way back in when all others are lost.

Whoever can write to that folder owns the control plane, so a token in the file is accepted as an admin's. The control plane
writes one at its first start; `opamp-relay admin-token` writes another one, also while the control plane runs. The file goes
when its token ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
from pathlib import Path

import sqlalchemy as sa

from relay.aio.clock import Clock
from relay.auth.secrets import TOKEN_FORM, digest_of, id_of
from relay.control.access.actor import SYSTEM
from relay.control.access.roles import Grant, Role
from relay.control.access.tokens import Token
from relay.control.credentials.tokens import TokenRegistry, TokenRequest
from relay.control.ledger.ledger import Ledger
from relay.control.storage import schema
from relay.control.storage.database import Database
from relay.control.storage.rows import replace
from relay.errors import RelayError
from relay.observe import log
from relay.store.private import write_private

_log = log.get("opamp-relay.admin")
_LOOK_S = 1.0
_LIFETIME_S = 86_400.0
_MAX_BYTES = 200
FILE = "admin-token"
OWNER = "admin"
_STARTED = "admin-token"
"""The name of the fact that the first token was written: ids of the tokens that were accepted from the file."""


def write_admin_token(file: Path) -> str:
    """Write a new token to the file, which only its owner can read. Returns the token.

    Raises:
        OSError: it cannot be written.
    """
    secret = TOKEN_FORM.make(os.urandom(TOKEN_FORM.chance_bytes))
    write_private(file, f"{secret}\n".encode())
    owner = file.parent.stat()
    if owner.st_uid != os.getuid():  # root makes it for the user that the control plane runs as
        os.chown(file, owner.st_uid, owner.st_gid)
    return secret


def _read(file: Path) -> str:
    """The token in a regular file that is not a link, and not longer than a token."""
    descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as stream:
        if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            raise ValueError("not a regular file")
        return stream.read(_MAX_BYTES).decode().strip()


class AdminToken:
    """Accepts the token in the file, and removes the file when it has ended."""

    def __init__(self, file: Path, database: Database, ledger: Ledger, tokens: TokenRegistry, *, clock: Clock) -> None:
        self._file = file
        self._database = database
        self._ledger = ledger
        self._tokens = tokens
        self._clock = clock
        self._refused = ""
        """The content that was not accepted last, so that it is said once."""
        self._adopted: set[str] = set()
        """Ids of tokens that were accepted. One that was deleted since must not come back."""

    async def begin(self) -> None:
        """At the start: accept what is in the file; at the very first start, write it before.

        Raises:
            StoreError: the database failed.
        """
        if await self._is_first_start() and not self._file.exists():
            try:
                write_admin_token(self._file)
            except OSError as error:
                _log.error("admin_token_not_written", file=str(self._file), error=error.strerror)
            else:
                _log.info("admin_token_written", file=str(self._file), valid_for="24h")
        await self.look()

    async def _is_first_start(self) -> bool:
        """Whether people never needed a token before. Remembers it, and which tokens were accepted from the file."""
        async with self._database.write() as connection:
            rows = (await connection.execute(sa.select(schema.facts).where(schema.facts.c.name == _STARTED))).all()
            if rows:
                self._adopted |= set(rows[0].value.split())
                return False
            await replace(connection, schema.facts, [{"name": _STARTED, "value": ""}])
        return True

    async def _remember(self, token_id: str) -> None:
        self._adopted.add(token_id)
        value = " ".join(sorted(self._adopted))
        async with self._database.write() as connection:
            await replace(connection, schema.facts, [{"name": _STARTED, "value": value}])

    async def run(self) -> None:
        """Look at the file again and again, until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_S)
            await self.look()

    async def look(self) -> None:
        """Accept a token that is new; remove the file if its token has ended or was deleted."""
        try:
            secret = _read(self._file)
        except PermissionError as error:
            self._refuse(str(error), f"it cannot be read: {error.strerror}")
            return
        except (OSError, ValueError):
            return
        if not TOKEN_FORM.fits(secret):
            self._refuse(secret, "it does not hold a token")
            return
        token_id = id_of(digest_of(secret), "token")
        token = self._ledger.state.tokens.get(token_id)
        if token is None and token_id not in self._adopted and not self._is_old():
            await self._adopt(secret)
        elif token is None or self._has_ended(token):
            with contextlib.suppress(OSError):
                self._file.unlink()

    def _has_ended(self, token: Token) -> bool:
        return self._clock.unix_ms() >= token.expires_ms

    def _is_old(self) -> bool:
        """Whether the file is older than its token can be: the token was deleted since."""
        try:
            return self._clock.unix_ms() / 1000 - self._file.stat().st_mtime > _LIFETIME_S
        except OSError:
            return True

    async def _adopt(self, secret: str) -> None:
        request = TokenRequest("admin-token", Grant(Role.ADMIN), _LIFETIME_S, OWNER)
        try:
            await self._remember(
                id_of(digest_of(secret), "token")
            )  # first: a token that was deleted must not come back
            token = await self._tokens.adopt(secret, request, actor=SYSTEM)
        except RelayError as error:  # it is tried again
            _log.error("admin_token_not_accepted", file=str(self._file), reason=str(error))
        else:
            _log.warning("admin_token_accepted", file=str(self._file), credential=token.id)

    def _refuse(self, content: str, reason: str) -> None:
        if content == self._refused:
            return
        self._refused = content
        _log.error("admin_token_refused", file=str(self._file), reason=reason)
