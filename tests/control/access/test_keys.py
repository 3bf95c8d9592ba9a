from __future__ import annotations

import dataclasses
import json

import pytest

from relay.control.access.keys import ApiKey, ApiKeys
from relay.errors import NotFound


def key(prefix: str, *regions: str, **more: object) -> ApiKey:
    made = ApiKey(bytes.fromhex(prefix) + bytes(30), "web", False, {"team": "a"}, regions, 1, "ann", 1000)
    return dataclasses.replace(made, **more)  # type: ignore[arg-type]


ONE, TWO, OTHER = key("aa01"), key("aa02"), key("bb01")


def test_keys_are_found_by_id() -> None:
    keys = ApiKeys().put([ONE, TWO, OTHER])
    assert (len(keys), set(map(id, keys))) == (3, set(map(id, (ONE, TWO, OTHER))))
    assert keys.get(ONE.id) is ONE is keys.find(ONE.id)
    assert TWO.id in keys
    for unknown in ("key-aa03000000", "key-cc01000000", "key-", "x"):
        assert unknown not in keys
    with pytest.raises(NotFound, match="there is no API key x"):
        keys.find("x")


def test_a_change_touches_one_shard() -> None:
    before = ApiKeys().put([ONE, OTHER])
    after = before.put([TWO])
    assert after.shards[0xBB] is before.shards[0xBB]
    assert before.get(TWO.id) is None
    assert list(before.changed_shards(after)) == [({ONE.id: ONE}, {ONE.id: ONE, TWO.id: TWO})]
    assert list(after.changed_shards(after)) == []
    gone = after.without([OTHER.id, "key-cc00000000"])
    assert gone.get(OTHER.id) is None
    assert set(gone.shards) == {0xAA}
    assert gone.without([ONE.id]).get(TWO.id) is TWO


def test_what_regions_are_told() -> None:
    keys = ApiKeys().put([ONE, key("aa02", "eu"), key("bb01", "us")])
    told = {region: keys.resources(region) for region in ("eu", "us", "asia")}
    assert {region: sorted(names) for region, names in told.items()} == {
        "eu": ["ApiKeys/aa"],
        "us": ["ApiKeys/aa", "ApiKeys/bb"],
        "asia": ["ApiKeys/aa"],
    }
    assert len(json.loads(told["eu"]["ApiKeys/aa"])["keys"]) == 2
    assert told["us"]["ApiKeys/aa"] == told["asia"]["ApiKeys/aa"]
    assert keys.resources("eu")["ApiKeys/aa"] is told["eu"]["ApiKeys/aa"], "it is made once"
    assert b"ann" not in told["eu"]["ApiKeys/aa"]


def test_a_key_outlives_its_end_a_little_but_not_its_replacement() -> None:
    assert ONE.refused_from_ms == 61_000 == ONE.published.refused_from_ms
    assert key("aa01", replaced_by="key-2").refused_from_ms == 1000


def test_plain_values() -> None:
    made = key("aa01", "eu", replaced_by="key-2")
    assert ApiKey.from_plain(json.loads(json.dumps(made.plain()))) == made
