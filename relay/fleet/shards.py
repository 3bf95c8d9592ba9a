"""256 sums that tell whether both ends of the link have the same agents in the same states.

Each shard is the sum, modulo 2⁶⁴, of the digests of its agents' states. Adding and removing an agent are one operation
each, so both ends can maintain the sums cheaply. They compare them now and then and examine only shards that differ.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from relay.ids import digest64

COUNT = 256
_MASK = (1 << 64) - 1


def shard_of(uid: bytes) -> int:
    """The shard of an agent: the last byte of its uid, which is random in every UUID version that agents use."""
    return uid[-1]


def state_digest(uid: bytes, state: bytes) -> int:
    """Digest of one agent's serialised AgentState. Never 0, which means no agent."""
    return digest64(uid + state) or 1


class Shards:
    """The sums of one end of the link."""

    def __init__(self) -> None:
        self._sums = [0] * COUNT

    def replace(self, uid: bytes, old: int, new: int) -> None:
        """Replace an agent's digest; 0 for no agent."""
        shard = shard_of(uid)
        self._sums[shard] = (self._sums[shard] - old + new) & _MASK

    def sums(self) -> list[int]:
        """All 256, in order."""
        return list(self._sums)

    def differing(self, other: Iterable[int]) -> list[int]:
        """The shards whose sums differ from `other`."""
        return [i for i, (mine, theirs) in enumerate(zip(self._sums, other, strict=True)) if mine != theirs]


def difference(mine: Mapping[bytes, int], theirs: Mapping[bytes, int]) -> tuple[list[bytes], list[bytes]]:
    """Compare one shard's listings.

    Returns:
        (uids whose state must be fetched from the other end, uids that the other end does not have).
    """
    to_fetch = [uid for uid, digest in theirs.items() if mine.get(uid) != digest]
    to_remove = [uid for uid in mine if uid not in theirs]
    return to_fetch, to_remove
