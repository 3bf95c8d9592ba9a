from __future__ import annotations

from urllib.parse import parse_qsl, urlsplit

import pytest

from relay.node.packages.addresses import VALID_S, Addresses
from relay.opamp.offer import OfferedSlot
from relay.opamp.packages import OfferedPackage, PackagesOffer
from relay.pb.opamp.v1 import opamp_pb2 as pb
from relay.testing.clock import ManualClock
from relay.transport.downloads import Denied

SHA256 = b"f" * 32
AGENT = OfferedPackage("agent", "1", "top-level", b"A" * 32, SHA256, b"")
OFFER = PackagesOffer(b"set", (AGENT,), (OfferedSlot("", "p", b"c"),), (("agent", AGENT.hash),))


def made(*keys: bytes) -> tuple[Addresses, ManualClock]:
    clock = ManualClock()
    addresses = Addresses(clock=clock)
    addresses.use(keys)
    return addresses, clock


def query_of(addresses: Addresses) -> dict[str, str]:
    message = pb.ServerToAgent.FromString(addresses.field(OFFER, "http://here"))
    return dict(parse_qsl(urlsplit(message.packages_available.packages["agent"].file.download_url).query))


def refusal(addresses: Addresses, query: dict[str, str], sha256: str = SHA256.hex()) -> str:
    with pytest.raises(Denied) as caught:
        addresses.verify(sha256, query)
    return str(caught.value)


def test_address_is_valid_for_a_day_and_one_file() -> None:
    addresses, clock = made(b"1" * 32)
    query = query_of(addresses)
    addresses.verify(SHA256.hex(), query)
    assert "signature of the address is wrong" in refusal(addresses, query, "0" * 64)
    clock.advance(VALID_S - 1)
    addresses.verify(SHA256.hex(), query)
    clock.advance(3602)
    assert "has expired" in refusal(addresses, query)


def test_one_encoding_serves_all_agents_of_an_hour() -> None:
    addresses, clock = made(b"1" * 32)
    first = addresses.field(OFFER, "http://here")
    assert addresses.field(OFFER, "http://here") is first
    assert addresses.field(OFFER, "http://there") is not first
    clock.advance(3600)
    assert addresses.field(OFFER, "http://here") != first


def test_addresses_of_the_previous_key_stay_valid() -> None:
    addresses, _ = made(b"1" * 32)
    query = query_of(addresses)
    addresses.use((b"2" * 32, b"1" * 32))
    addresses.verify(SHA256.hex(), query)
    addresses.use((b"2" * 32,))
    assert "signature of the address is wrong" in refusal(addresses, query)
    addresses.use(())
    assert not addresses.has_key


@pytest.mark.parametrize("expires", ["", "x", "١", "9" * 13])
def test_invalid_addresses(expires: str) -> None:
    addresses, _ = made(b"1" * 32)
    assert "the address is incomplete" in refusal(addresses, {"expires": expires, "signature": "0"})
