"""256 sums that tell whether two ends hold the same agents in the same states.

Each shard is the sum, modulo 2⁶⁴, of the digests of its agents' states. Adding and taking away are one operation each,
so both ends keep them up at no cost and compare them now and then; only a shard that differs is looked into.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from relay.ids import digest64

COUNT = 256
_MASK = (1 << 64) - 1


def shard_of(uid: bytes) -> int:
    """The shard of an agent: the last byte of its uid, which is random in every version of UUID that agents draw."""
    return uid[-1]


def state_digest(uid: bytes, state: bytes) -> int:
    """Digest of one agent's serialised AgentState. Never 0, which stands for no agent."""
    return digest64(uid + state) or 1


class Shards:
    """The sums of one end."""

    def __init__(self) -> None:
        self._sums = [0] * COUNT

    def replace(self, uid: bytes, old: int, new: int) -> None:
        """An agent's digest changed; 0 for none."""
        shard = shard_of(uid)
        self._sums[shard] = (self._sums[shard] - old + new) & _MASK

    def sums(self) -> list[int]:
        """All 256, in order."""
        return list(self._sums)

    def differing(self, other: Iterable[int]) -> list[int]:
        """The shards whose sums are not those of `other`."""
        return [i for i, (mine, theirs) in enumerate(zip(self._sums, other, strict=True)) if mine != theirs]


def difference(mine: Mapping[bytes, int], theirs: Mapping[bytes, int]) -> tuple[list[bytes], list[bytes]]:
    """Compare one shard's listings.

    Returns:
        (uids whose state must be fetched from the other end, uids that the other end does not have).
    """
    wanted = [uid for uid, digest in theirs.items() if mine.get(uid) != digest]
    gone = [uid for uid in mine if uid not in theirs]
    return wanted, gone
