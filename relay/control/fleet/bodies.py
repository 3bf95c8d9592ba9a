"""Effective configs and component lists: too long for the agent states, and often equal for many agents."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa
from google.protobuf.message import DecodeError
from sqlalchemy.ext.asyncio import AsyncConnection

from relay.control.fleet.agents import Agent
from relay.control.storage import schema
from relay.control.storage.database import Database
from relay.control.storage.rows import remove, replace
from relay.errors import NotFound, StoreError
from relay.ids import sha256
from relay.observe import log
from relay.pb.opamp.v1 import opamp_pb2 as pb
from relay.pb.relay.v1 import link_pb2

_log = log.get("opamp-relay.fleet")


class Bodies:
    """The stored bodies. Each is stored once, under its digest."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._digests: set[bytes] = set()

    def __len__(self) -> int:
        return len(self._digests)

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._digests

    async def load(self) -> None:
        """Read the digests of all stored bodies."""
        async with self._database.read() as connection:
            self._digests = set((await connection.execute(sa.select(schema.effective_configs.c.digest))).scalars())

    def new_rows(self, sent: Iterable[link_pb2.EffectiveConfigBody]) -> list[dict[str, Any]]:
        """Return rows for the bodies that are not stored yet. One that is not what its digest says is left out."""
        fresh = [item for item in sent if item.digest not in self._digests]
        for item in fresh:
            if sha256(item.body) != item.digest:
                _log.error("body_refused", digest=item.digest.hex(), bytes=len(item.body))
        return [{"digest": i.digest, "body": i.body} for i in fresh if sha256(i.body) == i.digest]

    async def store(self, connection: AsyncConnection, rows: list[dict[str, Any]]) -> None:
        """Write rows in the caller's transaction. Call `added` after the commit."""
        await replace(connection, schema.effective_configs, rows)

    def mark_added(self, rows: Iterable[dict[str, Any]]) -> None:
        """Record that the rows from `store` are committed."""
        self._digests.update(row["digest"] for row in rows)

    def missing(self, agents: Iterable[Agent]) -> list[bytes]:
        """Return the digests that these agents reported and that are not stored."""
        digests = {d for a in agents for d in (a.effective_config_digest, a.components_digest)} - self._digests
        return sorted(d for d in digests if d)

    def unused(self, agents: Iterable[Agent]) -> set[bytes]:
        """Return the stored digests that none of these agents has."""
        return self._digests - {d for a in agents for d in (a.effective_config_digest, a.components_digest)}

    async def remove(self, connection: AsyncConnection, digests: set[bytes]) -> None:
        """Delete bodies in the caller's transaction. Call `removed` after the commit."""
        await remove(connection, schema.effective_configs, [{"digest": digest} for digest in digests])

    def mark_removed(self, digests: set[bytes]) -> None:
        """Record that the deletion by `remove` is committed."""
        self._digests -= digests

    async def _body(self, digest: bytes) -> bytes | None:
        query = sa.select(schema.effective_configs.c.body).where(schema.effective_configs.c.digest == digest)
        async with self._database.read() as connection:
            return (await connection.execute(query)).scalar_one_or_none()

    async def effective_config_of(self, digits: str) -> pb.EffectiveConfig | None:
        """Return the effective config whose digest starts with these digits; None if there is none or it is damaged."""
        digest = next((d for d in self._digests if d.hex().startswith(digits)), None)
        try:
            body = await self._body(digest) if digest is not None else None
            return pb.EffectiveConfig.FromString(body) if body is not None else None
        except (StoreError, DecodeError) as error:
            _log.error("row_damaged", table="effective_configs", key=digits, error=str(error))
            return None

    async def components(self, digest: bytes) -> pb.AvailableComponents:
        """Return a component list; empty if it has not arrived yet or is damaged."""
        try:
            return pb.AvailableComponents.FromString(await self._body(digest) or b"")
        except (StoreError, DecodeError) as error:
            _log.error("row_damaged", table="effective_configs", key=digest.hex(), error=str(error))
            return pb.AvailableComponents()

    async def effective_config(self, agent: Agent) -> pb.EffectiveConfig:
        """Return the effective config of an agent.

        Raises:
            NotFound: it reported none, or the body has not arrived yet.
        """
        digest = agent.effective_config_digest
        if not digest:
            raise NotFound(f"{agent.agent_id} has reported no effective config")
        body = await self._body(digest)
        if body is None:
            raise NotFound(f"the effective config of {agent.agent_id} has not arrived yet; try again later")
        return pb.EffectiveConfig.FromString(body)
