from __future__ import annotations

import subprocess
import sys

from relay.transport.places import RESERVED, Places


def test_places_are_limited_by_settings_and_descriptors() -> None:
    assert Places(1000, 1_000_000).limit == 1000
    few = Places(1000, 300)
    assert (few.limit, few.configured) == (300 - RESERVED, 1000)
    assert few.waiting_limit >= few.limit, "who comes first of all may come in a crowd"
    assert Places(10, 1_000_000).waiting_limit > 1000, "and be told that there is no room"
    few.count(lambda: few.limit)
    assert few.waiting_limit <= RESERVED - 64
    assert Places(1000, 0).limit == 1


def test_all_connection_kinds_are_counted() -> None:
    places = Places(10, 1000)
    places.count(lambda: 2)
    places.count(lambda: 3)
    assert places.used == 5


def test_descriptor_limit_is_raised_to_the_hard_limit() -> None:
    script = (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 256))\n"
        "from relay.transport.places import raise_descriptor_limit\n"
        "left = raise_descriptor_limit()\n"
        "assert resource.getrlimit(resource.RLIMIT_NOFILE) == (256, 256)\n"
        "assert 200 < left < 256, left\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
