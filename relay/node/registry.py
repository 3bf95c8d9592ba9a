"""The records of all agents of a node. When one changes, the registry updates the disk, the sums and the next report.

The registry owns the map of records. It marks changes and processes them a moment later in slices. So an agent that
connects, gets a config and applies it is encoded once, and a heartbeat waits only milliseconds behind ten thousand changes.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Collection, Iterable, Iterator

from google.protobuf.message import DecodeError

from relay.aio.clock import Clock
from relay.errors import StoreError
from relay.fleet.rollup import Rollup
from relay.fleet.shards import Shards, shard_of, state_digest
from relay.ids import InstanceUid
from relay.link.protocol.reports import ReportSender
from relay.observe import log
from relay.opamp.record import Record
from relay.store.local import LocalStore

_log = log.get("opamp-relay.registry")
BUCKET = "record"
EFFECTIVE_BUCKET = "effective"
_GATHER_S = 0.2
_MAX_GATHER_S = 1.0
"""How long changes are gathered in a storm, so that an agent that gets a config and applies it is encoded once. `kill -9`
can lose that much; the agents are then asked for their state again."""
_SLICE = 200
"""How many changes are processed without a pause. More of them within `_GATHER_S` are a storm."""
_ROOM_SHARE = 100
"""If the node is full, one in so many places is freed."""


class Registry:
    """Records by instance_uid.

    Args:
        wake: called when something waits to be reported.
    """

    def __init__(self, store: LocalStore, sender: ReportSender, *, clock: Clock, wake: Callable[[], None]) -> None:
        self._store = store
        self._sender = sender
        self._clock = clock
        self._wake = wake
        self._records: dict[bytes, Record] = {}
        self._dirty: dict[bytes, None] = {}
        self._marks = 0
        """Changes marked since the timer last fired."""
        self._gathered_s = 0.0
        """Roughly how long the first of them has waited."""
        self._timer: asyncio.TimerHandle | None = None
        self._on_hold = False
        self._uid_of: dict[str, bytes] = {}
        """`Record.known_as` → the uid that it used last."""
        self._ghosts: dict[str, set[bytes]] = {}
        """`Record.known_as` → other uids with a record of the agent."""
        self._body_of: dict[bytes, bytes] = {}
        """instance_uid → digest of its effective config on disk."""
        self._users: dict[bytes, int] = {}
        """Digest of an effective config → how many agents have it."""
        self.rollup = Rollup()
        self.shards = Shards()
        self._load()

    def _load(self) -> None:
        for key, value in self._store.load(BUCKET):
            try:
                record = Record.from_stored(value)
                if record.instance_uid != key:
                    raise DecodeError("stored under another uid")
                self._account(record)
            except DecodeError:
                _log.error("record_unreadable", instance_uid=key.hex())
                self._store.put(BUCKET, key, None)
                continue
            self._records[record.instance_uid] = record
            self._use_body(record)
            self._index_name(record)

    def _index_name(self, record: Record) -> None:
        """Remember which uid an agent used last, and which ones before."""
        if self._uid_of.get(record.known_as) == record.instance_uid:
            return
        before = self._records.get(self._uid_of.get(record.known_as, b""))
        if before is not None and before is not record and before.known_as == record.known_as:
            newest, other = (record, before)
            if not record.connected and before.session_started_ms > record.session_started_ms:
                newest, other = before, record
            self._ghosts.setdefault(record.known_as, set()).add(other.instance_uid)
            record = newest
        self._uid_of[record.known_as] = record.instance_uid

    def drop_ghosts(self, known_as: str) -> None:
        """Remove the records of a connected agent under uids that it no longer uses."""
        newest = self._records.get(self._uid_of.get(known_as, b""))
        if known_as not in self._ghosts or newest is None or not newest.connected:
            return
        still_connected = set()
        for uid in self._ghosts.pop(known_as):
            ghost = self._records.get(uid)
            if ghost is None or ghost is newest or ghost.known_as != known_as:
                continue
            if ghost.connected:
                still_connected.add(uid)
            else:
                self.remove(uid)
        if still_connected:
            self._ghosts[known_as] = still_connected

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[Record]:
        return iter(list(self._records.values()))

    def get(self, uid: bytes) -> Record | None:
        """The record of an agent; None if it is unknown."""
        return self._records.get(uid)

    def has_room_for(self, known_as: str, limit: int) -> bool:
        """Whether an agent may have one more record. At the limit, the one that has been away longest makes room."""
        uids = {self._uid_of.get(known_as, b""), *self._ghosts.get(known_as, ())}
        records = [record for uid in uids if (record := self._records.get(uid)) is not None]
        if len(records) < limit:
            return True
        away = [record for record in records if not record.connected]
        if away:
            self.remove(min(away, key=lambda record: record.last_seen_ms).instance_uid)
        return bool(away)

    def predecessor(self, record: Record) -> Record | None:
        """Another record of the same agent, under a uid that it no longer uses; None if there is none."""
        uid = self._uid_of.get(record.known_as, record.instance_uid)
        old = self._records.get(uid)
        if old is None or old is record or old.connected or old.known_as != record.known_as:
            return None
        return old

    def new(self, uid: bytes) -> Record:
        """Create the record of a new agent."""
        record = Record(InstanceUid(uid), self._clock.unix_ms())
        self._records[uid] = record
        return record

    def rename(self, record: Record, uid: bytes) -> None:
        """Move a record to the agent's new instance_uid."""
        if (body := self._body_of.pop(record.instance_uid, None)) is not None:
            self._body_of[uid] = body
        self.remove(record.instance_uid)
        record.instance_uid = InstanceUid(uid)
        self._records[uid] = record
        self.changed(record)

    def remove(self, uid: bytes) -> None:
        """Forget an agent: in memory, on disk, and at the control plane."""
        if self._drop(uid):
            self._sender.remove(uid)
            self._wake()

    def forget(self, uid: bytes) -> None:
        """Forget an agent only here. The control plane still knows it."""
        if self._drop(uid):
            self._sender.forget(uid)
            self._wake()

    def _drop(self, uid: bytes) -> bool:
        record = self._records.pop(uid, None)
        if record is None:
            return False
        self._dirty.pop(uid, None)
        if self._uid_of.get(record.known_as) == uid:
            del self._uid_of[record.known_as]
        if (ghosts := self._ghosts.get(record.known_as)) is not None:
            ghosts.discard(uid)
            if not ghosts:
                del self._ghosts[record.known_as]
        self._use_body(record, removed=True)
        self.rollup.forget(record)
        self.shards.replace(uid, record.digest, 0)
        record.digest = 0
        self._store.put(BUCKET, uid, None)
        return True

    def make_room(self, most: int) -> bool:
        """Forget some of the agents that have been away the longest. Return False if none is away.

        Args:
            most: how many agents the node may know.
        """
        if self.rollup.connected >= len(self):
            return False  # each newcomer at a full node gets here, so it must be cheap
        away = [r for r in self._records.values() if not r.connected]
        # Forget several at a time: otherwise each newcomer would search through all records.
        number = max(1, most // _ROOM_SHARE)
        for record in heapq.nsmallest(number, away, key=lambda r: r.last_seen_ms):
            self.forget(record.instance_uid)
        return bool(away)

    def changed(self, record: Record) -> None:
        """Mark a record as changed. The change is processed within moments."""
        record.last_change_ms = record.last_seen_ms = self._clock.unix_ms()
        self._index_name(record)
        self._dirty[record.instance_uid] = None
        self._marks += 1
        self._work_off_soon()

    def pause(self) -> None:
        """Only mark changes until `resume`: while a policy spreads, processing can wait."""
        self._on_hold = True

    def resume(self) -> None:
        """Undo `pause`."""
        self._on_hold = False
        if self._dirty:
            self._work_off_soon()

    def _work_off_soon(self) -> None:
        if self._timer is None and not self._on_hold:
            self._gathered_s = 0.0
            self._timer = asyncio.get_running_loop().call_later(_GATHER_S, self._on_timer)

    def _on_timer(self) -> None:
        """Process the gathered changes, or go on gathering if a storm has just begun."""
        marks, self._marks = self._marks, 0
        self._gathered_s += _GATHER_S
        if marks > _SLICE and self._gathered_s < _MAX_GATHER_S and not self._on_hold:
            self._timer = asyncio.get_running_loop().call_later(_GATHER_S, self._on_timer)
        else:
            self._work_off()

    def _work_off(self) -> None:
        self._timer = None
        if self._on_hold:
            return
        loop = asyncio.get_running_loop()
        for uid in [uid for uid, _ in zip(self._dirty, range(_SLICE), strict=False)]:
            del self._dirty[uid]
            record = self._records.get(uid)
            if record is None:
                continue
            state = self._account(record)
            self._store.put(BUCKET, uid, record.stored(state, sequence_exact=False))
            self._sender.change(uid)
        if self._dirty:
            self._timer = loop.call_later(0, self._work_off)
        self._wake()

    def flush(self) -> None:
        """Process all changes now. Used when the node stops."""
        self._on_hold = False
        while self._dirty:
            if self._timer is not None:
                self._timer.cancel()
            self._work_off()

    def _account(self, record: Record) -> bytes:
        state = record.state()
        digest = state_digest(record.instance_uid, state)
        if digest == record.digest:
            return state
        self.rollup.count(record)
        self.shards.replace(record.instance_uid, record.digest, digest)
        record.digest = digest
        return state

    def keep_effective_config(self, record: Record, content: bytes) -> None:
        """Store an effective config on disk under its digest, and drop the old one if no agent has it any more."""
        self._use_body(record)
        self._store.put(EFFECTIVE_BUCKET, record.effective_config_digest, content)

    def keep_components(self, record: Record, content: bytes) -> None:
        """Store an agent's list of components on disk under its digest, as many agents share the same list."""
        self._store.put(EFFECTIVE_BUCKET, record.components_digest, content)

    def _use_body(self, record: Record, *, removed: bool = False) -> None:
        current = b"" if removed else record.effective_config_digest
        before = self._body_of.get(record.instance_uid, b"")
        if before == current:
            return
        if current:
            self._users[current] = self._users.get(current, 0) + 1
            self._body_of[record.instance_uid] = current
        else:
            del self._body_of[record.instance_uid]
        if before:
            self._users[before] -= 1
            if not self._users[before]:
                del self._users[before]
                self._store.put(EFFECTIVE_BUCKET, before, None)

    # ---- for reports to the control plane

    def state(self, uid: bytes) -> bytes | None:
        """An agent's current state, serialised. The sums include it from now on."""
        record = self._records.get(uid)
        return None if record is None else self._account(record)

    def effective_config(self, digest: bytes) -> bytes | None:
        """The serialised EffectiveConfig with a digest; None if it is not here or cannot be read."""
        try:
            return self._store.get(EFFECTIVE_BUCKET, digest)
        except StoreError as error:
            _log.error("effective_config_unreadable", error=str(error))
            return None

    def listings(self, shards: Collection[int]) -> dict[int, dict[bytes, int]]:
        """Shard → the uids and digests of its agents."""
        listings: dict[int, dict[bytes, int]] = {shard: {} for shard in shards}
        for uid, record in self._records.items() if shards else ():
            if record.digest and shard_of(uid) in listings:
                listings[shard_of(uid)][uid] = record.digest
        return listings

    # ---- housekeeping

    def forget_goodbyes(self, ttl_s: float) -> None:
        """Forget agents that said goodbye at least `ttl_s` ago, if the control plane knows of it."""
        limit = self._clock.unix_ms() - int(ttl_s * 1000)
        for record in self:
            has_left = record.said_goodbye and not record.connected and record.last_seen_ms <= limit
            if has_left and self._sender.is_known(record.instance_uid):
                self.forget(record.instance_uid)

    def expire(self, ttl_s: float, digests: Iterable[bytes]) -> None:
        """Forget agents that have been away for longer than `ttl_s`, and drop bodies that no agent uses.

        Args:
            digests: the digests of all bodies on disk.
        """
        limit = self._clock.unix_ms() - int(ttl_s * 1000)
        for record in self:
            if not record.connected and record.last_seen_ms < limit:
                self.remove(record.instance_uid)
        names = {(r.known_as, uid) for uid, r in self._records.items()}
        self._uid_of = {name: uid for name, uid in self._uid_of.items() if (name, uid) in names}
        used = {d for r in self._records.values() for d in (r.effective_config_digest, r.components_digest)}
        for digest in digests:
            if digest not in used:
                self._store.put(EFFECTIVE_BUCKET, digest, None)

    def save_all(self) -> None:
        """Write every record with its exact sequence, so that no agent need be asked again after an orderly stop."""
        if self._timer is not None:
            self._timer.cancel()
        self._dirty.clear()
        for uid, record in self._records.items():
            record.connected = False
            self._store.put(BUCKET, uid, record.stored(record.state(), sequence_exact=True))
