"""The policy that a node serves: from disk at the start, then from the link; never a partial one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Mapping

from relay.auth.key_sets import RESOURCE, KeyChain, signed_of
from relay.auth.signing import Signed
from relay.fleet.cohort import Cohorts
from relay.fleet.guard import Halts, frozen_rollouts, halted_rollouts, judge
from relay.link.protocol.peer import Version
from relay.link.protocol.receiver import Candidate, SyncReceiver
from relay.link.protocol.signatures import check_stored, entries_of, parsed, vouched
from relay.observe import log
from relay.opamp.record import Record
from relay.pb.relay.v1 import link_pb2
from relay.policy.access import REVOCATIONS, Access, read_access
from relay.policy.resources import is_assignment, split
from relay.policy.snapshot import Snapshot, build
from relay.store.local import LocalStore

_log = log.get("opamp-relay.policy")
_BUCKET = "policy"
_HALTS_BUCKET = "halts"
_VERSION_KEY = b"\0manifest"
"""Sorts before every resource name and cannot be one."""
_SIGNED_KEY = b"\0signed"
"""The signed manifests; see `link.protocol.receiver.Acceptance`."""
_DOUBT_KEY = b"\0doubt"
"""Present while parts of the policy are lost and their names may be unknown."""


class PolicyHolder:
    """Stores the policy from the link and puts it in force.

    Args:
        changed: called after each change, with whether any agent's answer may have changed.
        admit: called with who may connect, whenever that has changed.
        chain: the key sets that this node trusts; None to trust those that it has stored, or else the first it sees.
        root: without `chain`: id of the root that must have signed them; empty for any.
        trusted: called with newer key sets.
    """

    def __init__(
        self,
        region: str,
        store: LocalStore,
        cohorts: Cohorts,
        *,
        changed: Callable[[bool], None],
        admit: Callable[[Access], None] = lambda _: None,
        chain: KeyChain | None = None,
        root: str = "",
        trusted: Callable[[KeyChain], None] = lambda _: None,
    ) -> None:
        self._trusted = trusted
        self._admit = admit
        self._store = store
        self._cohorts = cohorts
        self._changed = changed
        stored: dict[str, bytes] = {}
        version: Version | None = None
        names: list[str] = []
        doubted = False
        manifests: tuple[Signed, ...] = ()
        for key, value in store.load(_BUCKET):
            try:
                if key == _VERSION_KEY:
                    version, names = _manifest(value)
                elif key == _DOUBT_KEY:
                    doubted = True
                elif key == _SIGNED_KEY:
                    manifests = tuple(Signed.from_plain(item) for item in json.loads(value))
                else:
                    stored[key.decode()] = value
            except (ValueError, TypeError, KeyError) as error:
                _log.error("policy_unreadable", key=key.hex(), error=str(error), consequence="it will be fetched again")
                store.put(_BUCKET, key, None)
        chain = _stored_chain(stored, chain, root)
        stored, version, manifests = self._verified(region, stored, version, manifests, chain, root)
        if manifests and REVOCATIONS in entries_of(parsed(link_pb2.Manifest(), manifests[0].payload)):
            names.append(REVOCATIONS)  # whatever the disk says: this is signed
        self.missing = frozenset(names) - stored.keys()
        """Names of resources in the manifest in force that cannot be read any more."""
        for name in sorted(self.missing):
            _log.error(
                "policy_damaged",
                resource=name,
                consequence="its agents keep their configuration until it is fetched again",
            )
        if stored and version is None:
            _log.error("policy_damaged", resource="manifest", consequence="it will be fetched again")
        lost_resources = any(bucket == _BUCKET and key != _VERSION_KEY for bucket, key in store.damaged)
        if self.missing or (stored and version is None and lost_resources):
            # At the next start, the lost resources leave no trace. If the manifest is lost then, so are their names.
            doubted = True
            store.put(_BUCKET, _DOUBT_KEY, b"1")
        self.is_incomplete = doubted
        """Parts of the policy in force are lost, perhaps more than `missing` names."""
        self.receiver = SyncReceiver(region, stored, version, chain=chain, root=root, manifests=manifests)
        self.halts: Halts = {
            name.decode("utf-8", "replace"): reason.decode("utf-8", "replace")
            for name, reason in store.load(_HALTS_BUCKET)
        }
        """What this node took back on its own; see `relay.fleet.guard`."""
        self.rejected: dict[str, link_pb2.Rejection] = {}
        """Resources of the manifest in force that could not be used."""
        self.access, refused = read_access(stored, Access())
        """Who may connect."""
        for name, reason in refused.items():
            _log.error("resource_rejected", resource=name, reason=reason)
        is_lost = REVOCATIONS in self.missing or REVOCATIONS in refused or (doubted and version is None)
        self.knows_revocations = not is_lost
        """False while they are lost: whoever they named must not come back, so nobody is admitted."""
        if self.accepted:
            snapshot = build(stored)
            for name, reason in snapshot.rejected.items():
                _log.error("resource_rejected", resource=name, reason=reason)
            cohorts.change(snapshot, missing=self._unusable(snapshot), in_doubt=doubted)
            self._restrict(frozenset())

    @staticmethod
    def _verified(
        region: str,
        stored: dict[str, bytes],
        version: Version | None,
        manifests: tuple[Signed, ...],
        chain: KeyChain | None,
        root: str,
    ) -> tuple[dict[str, bytes], Version | None, tuple[Signed, ...]]:
        """What of the stored policy the control plane signed: all of it, unless somebody changed the disk."""
        is_signed = chain.current.signs_policy if chain is not None else bool(root)
        if not is_signed or not (stored or version):
            return stored, version, manifests
        try:
            if chain is None or version is None:
                raise ValueError("its key sets are gone" if chain is None else "its manifest is gone")
            check_stored(region, version, manifests, chain)
            good, others = vouched(stored, manifests)
        except ValueError as error:
            _log.error("policy_not_verified", error=str(error), consequence="it will be fetched again")
            return {}, None, ()
        for name in others:
            _log.error("policy_not_verified", resource=name, consequence="it will be fetched again")
        return good, version, manifests

    @property
    def accepted(self) -> bool:
        """Whether this node has ever received a policy, even an empty one."""
        return self.receiver.version is not None or bool(self.receiver.held)

    def _unusable(self, snapshot: Snapshot) -> frozenset[str]:
        """Assignments that are missing or rejected. Their agents keep what they have."""
        in_force = {f"{a.kind}/{a.published.name}" for a in snapshot.assignments}
        # If parts are missing, a resource may have been rejected for lack of them. It returns with them.
        names = self.missing | (snapshot.rejected.keys() if self.missing else snapshot.rejected.keys() - in_force)
        return frozenset(split(name)[1] for name in names if is_assignment(name))

    def _restrict(self, frozen: frozenset[str]) -> bool:
        return self._cohorts.restrict(halted_rollouts(self._cohorts.snapshot, self.halts), frozen)

    def protect(self, records: Iterable[Record], policy_age_s: float) -> bool:
        """Halt rollouts that fail in this region, and freeze those whose policy may be out of date.

        Returns:
            Whether any agent's answer may have changed.
        """
        snapshot = self._cohorts.snapshot
        new_halts = judge(snapshot, records, self.halts, self._cohorts.hash_of)
        for name, reason in new_halts.items():
            _log.error("rollout_halted", rollout=name.rpartition("/")[0], reason=reason)
            self._store.put(_HALTS_BUCKET, name.encode(), reason.encode())
        self.halts |= new_halts
        return self._restrict(frozen_rollouts(snapshot, policy_age_s))

    def halted(self) -> dict[str, str]:
        """Rollouts in the policy that are halted here → why."""
        ongoing = halted_rollouts(self._cohorts.snapshot, self.halts)
        return {name.rpartition("/")[0]: why for name, why in self.halts.items() if name.rpartition("/")[0] in ongoing}

    def _forget_halts(self) -> None:
        """Forget the halts of rollouts that are over."""
        ongoing = halted_rollouts(self._cohorts.snapshot, self.halts)
        for name in [name for name in self.halts if name.rpartition("/")[0] not in ongoing]:
            del self.halts[name]
            self._store.put(_HALTS_BUCKET, name.encode(), None)

    async def put_in_force(self, candidate: Candidate) -> link_pb2.SyncRequest:
        """Compile, store and apply a candidate.

        Returns:
            The acknowledgement, with a rejection for each resource that cannot be used.

        Raises:
            StoreError: the candidate could not be stored; the old policy stays in force, but for who may connect.
        """
        # Before all else, and whatever happens to the rest: a revocation must not wait for it.
        before, before_chain = self.access, self.receiver.chain
        self.receiver.floor = (
            candidate.version
        )  # also if it cannot be stored: an older one would bring the revoked back
        self.access, refused = await asyncio.to_thread(read_access, candidate.resources, before)
        self.knows_revocations = self.knows_revocations or REVOCATIONS not in refused
        if self.access != before:
            self._admit(self.access)
        # In a thread, to keep answering agents: checking a thousand documents takes a tenth of a second.
        snapshot = await asyncio.to_thread(build, candidate.resources, self._cohorts.snapshot)
        rendered = await asyncio.to_thread(self._cohorts.prepare, snapshot)
        outcome = self.receiver.outcome(candidate, {**snapshot.rejected, **refused}, snapshot.needed, snapshot.salvaged)
        writes: dict[bytes, bytes | None] = {name.encode(): payload for name, payload in outcome.changes.items()}
        writes[_VERSION_KEY] = json.dumps({"version": candidate.version, "names": sorted(outcome.held)}).encode()
        writes[_SIGNED_KEY] = json.dumps([item.plain() for item in outcome.manifests]).encode()
        writes[_DOUBT_KEY] = None
        await self._store.commit(_BUCKET, writes)
        self.missing, self.is_incomplete = frozenset(), False
        self._store.clear_damaged(_BUCKET)
        changed = self._cohorts.change(snapshot, rendered, missing=self._unusable(snapshot))
        self._forget_halts()
        changed |= self._restrict(frozenset())
        ack = self.receiver.accept(outcome)
        if candidate.chain is not None and candidate.chain is not before_chain:
            self._trusted(candidate.chain)
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


def _stored_chain(stored: Mapping[str, bytes], chain: KeyChain | None, root: str) -> KeyChain | None:
    """The key sets to trust: with those that came with the stored policy."""
    if RESOURCE not in stored:
        return chain
    try:
        signed = signed_of(stored[RESOURCE])
        return KeyChain.of(signed, root) if chain is None else chain.extended(signed)
    except ValueError as error:
        _log.error("policy_not_verified", resource=RESOURCE, error=str(error))
        return chain


def _manifest(value: bytes) -> tuple[Version, list[str]]:
    """(version, names of its resources) of the stored manifest; earlier releases wrote no names."""
    manifest = json.loads(value)
    epoch, number = manifest["version"] if isinstance(manifest, dict) else manifest
    return (int(epoch), int(number)), list(manifest["names"]) if isinstance(manifest, dict) else []
