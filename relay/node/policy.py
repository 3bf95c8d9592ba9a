"""The policy that a node serves by: from disk at start, from the link afterwards, never half."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

from relay.fleet.cohort import Cohorts
from relay.link.protocol import Candidate, SyncReceiver, Version
from relay.observe import log
from relay.pb.relay.v1 import link_pb2
from relay.policy.snapshot import build
from relay.store.local import LocalStore

_log = log.get("opamp-relay.policy")
_BUCKET = "policy"
_VERSION_KEY = b"\0manifest"
"""Sorts before every resource name and cannot be one."""


class PolicyHolder:
    """Keeps what came over the link on disk and in force.

    Args:
        changed: called after each change, with whether any agent's answer may be different.
    """

    def __init__(self, region: str, store: LocalStore, cohorts: Cohorts, *, changed: Callable[[bool], None]) -> None:
        self._store = store
        self._cohorts = cohorts
        self._changed = changed
        held: dict[str, bytes] = {}
        version: Version | None = None
        try:
            for key, value in store.load(_BUCKET):
                if key == _VERSION_KEY:
                    epoch, number = json.loads(value)
                    version = (int(epoch), int(number))
                else:
                    held[key.decode()] = value
        except (ValueError, TypeError) as error:
            _log.error("policy_unreadable", error=str(error), consequence="none is in force until the link brings it")
            held, version = {}, None
        self.receiver = SyncReceiver(region, held, version)
        self.rejected: dict[str, link_pb2.Rejection] = {}
        """What of the manifest in force could not be used."""
        if version is not None:
            cohorts.change(build(held))

    @property
    def accepted(self) -> bool:
        """Whether this node ever had a policy, were it an empty one."""
        return self.receiver.version is not None

    async def put_in_force(self, candidate: Candidate) -> link_pb2.SyncRequest:
        """Compile, store and apply a candidate.

        Returns:
            The acknowledgement, with a rejection for each resource that cannot be used.

        Raises:
            StoreError: it could not be stored; the old policy stays in force.
        """
        # In a thread: a thousand documents take a tenth of a second to check, and agents are answered meanwhile.
        snapshot = await asyncio.to_thread(build, candidate.resources, self._cohorts.snapshot)
        outcome = self.receiver.outcome(candidate, snapshot.rejected, snapshot.needed)
        writes: dict[bytes, bytes | None] = {name.encode(): payload for name, payload in outcome.changes.items()}
        writes[_VERSION_KEY] = json.dumps(candidate.version).encode()
        await self._store.commit(_BUCKET, writes)
        changed = self._cohorts.change(snapshot)
        ack = self.receiver.accept(outcome)
        self.rejected = {r.name: r for r in outcome.ack.rejected}
        for rejection in self.rejected.values():
            _log.error("resource_rejected", resource=rejection.name, reason=rejection.reason)
        _log.info(
            "policy_in_force",
            manifest=candidate.version,
            assignments=len(snapshot.assignments),
            rejected=len(self.rejected),
        )
        self._changed(changed)
        return ack
