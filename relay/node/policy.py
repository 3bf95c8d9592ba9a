"""The policy that a node serves by: from disk at start, from the link afterwards, never half."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable

from relay.fleet.cohort import Cohorts
from relay.fleet.guard import Halts, frozen_rollouts, halted_rollouts, judge
from relay.link.protocol import Candidate, SyncReceiver, Version
from relay.observe import log
from relay.opamp.record import Record
from relay.pb.relay.v1 import link_pb2
from relay.policy.resources import is_assignment, split
from relay.policy.snapshot import Snapshot, build
from relay.store.local import LocalStore

_log = log.get("opamp-relay.policy")
_BUCKET = "policy"
_HALTS_BUCKET = "halts"
_VERSION_KEY = b"\0manifest"
"""Sorts before every resource name and cannot be one."""
_DOUBT_KEY = b"\0doubt"
"""There while something of the policy is lost, and nobody knows what."""


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
        named: list[str] = []
        doubted = False
        for key, value in store.load(_BUCKET):
            try:
                if key == _VERSION_KEY:
                    version, named = _manifest(value)
                elif key == _DOUBT_KEY:
                    doubted = True
                else:
                    held[key.decode()] = value
            except (ValueError, TypeError, KeyError) as error:
                _log.error("policy_unreadable", key=key.hex(), error=str(error), consequence="it is fetched again")
                store.put(_BUCKET, key, None)
        self.missing = frozenset(named) - held.keys()
        """Names of the manifest in force of which nothing can be read any more."""
        for name in sorted(self.missing):
            _log.error(
                "policy_damaged", resource=name, consequence="its agents keep their configuration until it is fetched"
            )
        if held and version is None:
            _log.error("policy_damaged", resource="manifest", consequence="it is fetched again")
        others = any(bucket == _BUCKET and key != _VERSION_KEY for bucket, key in store.damaged)
        if self.missing or (held and version is None and others):
            # What is lost is not even damaged at the next start; and if the manifest goes then, nobody knows its name.
            doubted = True
            store.put(_BUCKET, _DOUBT_KEY, b"1")
        self.doubted = doubted
        """Something of the policy in force was lost, perhaps more than is known to be missing."""
        self.receiver = SyncReceiver(region, held, version)
        self.halts: Halts = {
            name.decode("utf-8", "replace"): reason.decode("utf-8", "replace")
            for name, reason in store.load(_HALTS_BUCKET)
        }
        """What this node took back by itself; see `relay.fleet.guard`."""
        self.rejected: dict[str, link_pb2.Rejection] = {}
        """What of the manifest in force could not be used."""
        if self.accepted:
            snapshot = build(held)
            for name, reason in snapshot.rejected.items():
                _log.error("resource_rejected", resource=name, reason=reason)
            cohorts.change(snapshot, missing=self._not_here(snapshot), in_doubt=doubted)
            self._restrict(frozenset())

    @property
    def accepted(self) -> bool:
        """Whether this node ever had a policy, were it an empty one."""
        return self.receiver.version is not None or bool(self.receiver.held)

    def _not_here(self, snapshot: Snapshot) -> frozenset[str]:
        """Assignments whose agents keep what they have, since nobody can say what they are to have."""
        in_force = {f"{a.kind}/{a.published.name}" for a in snapshot.assignments}
        # Where parts were damaged, what is rejected may be for lack of them: it comes again with them.
        names = self.missing | (snapshot.rejected.keys() if self.missing else snapshot.rejected.keys() - in_force)
        return frozenset(split(name)[1] for name in names if is_assignment(name))

    def _restrict(self, frozen: frozenset[str]) -> bool:
        return self._cohorts.restrict(halted_rollouts(self._cohorts.snapshot, self.halts), frozen)

    def protect(self, records: Iterable[Record], policy_age_s: float) -> bool:
        """Look after the region: take back what fails here, and what may be out of date give to nobody else.

        Returns:
            Whether any agent's answer may have changed.
        """
        snapshot = self._cohorts.snapshot
        found = judge(snapshot, records, self.halts, self._cohorts.hash_of)
        for name, reason in found.items():
            _log.error("rollout_halted", rollout=name.rpartition("/")[0], reason=reason)
            self._store.put(_HALTS_BUCKET, name.encode(), reason.encode())
        self.halts |= found
        return self._restrict(frozen_rollouts(snapshot, policy_age_s))

    def halted(self) -> dict[str, str]:
        """Rollouts of the policy in force that are halted here → why."""
        going = halted_rollouts(self._cohorts.snapshot, self.halts)
        return {name.rpartition("/")[0]: why for name, why in self.halts.items() if name.rpartition("/")[0] in going}

    def _forget_halts(self) -> None:
        """Of rollouts that are over."""
        going = halted_rollouts(self._cohorts.snapshot, self.halts)
        for name in [name for name in self.halts if name.rpartition("/")[0] not in going]:
            del self.halts[name]
            self._store.put(_HALTS_BUCKET, name.encode(), None)

    async def put_in_force(self, candidate: Candidate) -> link_pb2.SyncRequest:
        """Compile, store and apply a candidate.

        Returns:
            The acknowledgement, with a rejection for each resource that cannot be used.

        Raises:
            StoreError: it could not be stored; the old policy stays in force.
        """
        # In a thread: a thousand documents take a tenth of a second to check, and agents are answered meanwhile.
        snapshot = await asyncio.to_thread(build, candidate.resources, self._cohorts.snapshot)
        rendered = await asyncio.to_thread(self._cohorts.prepare, snapshot)
        outcome = self.receiver.outcome(candidate, snapshot.rejected, snapshot.needed, snapshot.salvaged)
        writes: dict[bytes, bytes | None] = {name.encode(): payload for name, payload in outcome.changes.items()}
        writes[_VERSION_KEY] = json.dumps({"version": candidate.version, "names": sorted(outcome.held)}).encode()
        writes[_DOUBT_KEY] = None
        await self._store.commit(_BUCKET, writes)
        self.missing, self.doubted = frozenset(), False
        self._store.forgive(_BUCKET)
        changed = self._cohorts.change(snapshot, rendered, missing=self._not_here(snapshot))
        self._forget_halts()
        changed |= self._restrict(frozenset())
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


def _manifest(value: bytes) -> tuple[Version, list[str]]:
    """(number, names of what belongs to it) of the manifest in force; a version of before wrote no names."""
    plain = json.loads(value)
    epoch, number = plain["version"] if isinstance(plain, dict) else plain
    return (int(epoch), int(number)), list(plain["names"]) if isinstance(plain, dict) else []
