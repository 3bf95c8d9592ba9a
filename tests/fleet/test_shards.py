from hypothesis import given
from hypothesis import strategies as st

from relay.fleet.shards import COUNT, Shards, difference, shard_of, state_digest

uids = st.binary(min_size=16, max_size=16)


@given(st.lists(st.tuples(uids, st.binary(max_size=4)), max_size=30))
def test_sums_do_not_depend_on_order(changes: list[tuple[bytes, bytes]]) -> None:
    walked, held = Shards(), dict[bytes, int]()
    for uid, state in changes:
        digest = state_digest(uid, state)
        walked.replace(uid, held.get(uid, 0), digest)
        held[uid] = digest
    direct = Shards()
    for uid, digest in held.items():
        direct.replace(uid, 0, digest)
    assert walked.sums() == direct.sums()
    for uid, digest in held.items():
        walked.replace(uid, digest, 0)
    assert walked.sums() == [0] * COUNT


def test_differing_shard_is_found() -> None:
    one, two = Shards(), Shards()
    uid = bytes(15) + b"\x07"
    one.replace(uid, 0, state_digest(uid, b"state"))
    assert one.differing(two.sums()) == [7] == [shard_of(uid)]
    assert one.differing(one.sums()) == []


def test_listing_shows_what_to_fetch_and_what_is_gone() -> None:
    mine = {b"same": 1, b"old": 1, b"gone": 1}
    theirs = {b"same": 1, b"old": 2, b"new": 1}
    assert difference(mine, theirs) == ([b"old", b"new"], [b"gone"])


def test_no_state_has_a_zero_digest() -> None:
    assert state_digest(b"u" * 16, b"") != 0
