from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.transport.peers import V1, V2, Origin, ProxyHeader, TrustedProxies, address_of, proxy_header, scheme_of

TRUSTED = TrustedProxies(["10.0.0.0/8", "::1"])


def peer(ip: str = "10.0.0.1", **headers: str) -> Origin:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return TRUSTED.peer((ip, 4000), named, scheme="http")


@pytest.mark.parametrize(
    ("headers", "remote", "base_url"),
    [
        ({"host": "node:4320"}, "10.0.0.1:4000", "http://node:4320"),
        ({"x_forwarded_for": "203.0.113.7"}, "203.0.113.7", ""),
        ({"x_forwarded_for": "6.6.6.6, 203.0.113.7, 10.9.9.9"}, "203.0.113.7", ""),
        ({"x_forwarded_for": "10.1.1.1, 10.9.9.9"}, "10.1.1.1", ""),
        ({"x_forwarded_for": "unknown"}, "10.0.0.1:4000", ""),
        ({"x_forwarded_for": "203.0.113.7:99"}, "203.0.113.7:99", ""),
        ({"x_forwarded_for": "203.0.113.7:²"}, "203.0.113.7", ""),
        ({"x_forwarded_for": "203.0.113.7:" + 5000 * "9"}, "203.0.113.7", ""),
        (
            {"x_forwarded_for": "203.0.113.7", "x_forwarded_proto": "https", "x_forwarded_host": "relay.example"},
            "203.0.113.7",
            "https://relay.example",
        ),
        ({"host": "inner", "x_forwarded_proto": "https"}, "10.0.0.1:4000", "https://inner"),
        ({"x_forwarded_proto": "gopher", "host": "h"}, "10.0.0.1:4000", "http://h"),
        ({"x_forwarded_host": "bad host", "host": "h"}, "10.0.0.1:4000", ""),
        (
            {"forwarded": 'for="[2001:db8::1]:55";proto=https;host="a.example:1"'},
            "[2001:db8::1]:55",
            "https://a.example:1",
        ),
        (
            {"forwarded": "for=6.6.6.6;proto=http, for=203.0.113.7;proto=https;host=a, for=10.2.2.2;proto=http;host=b"},
            "203.0.113.7",
            "https://a",
        ),
        ({"forwarded": 'for="_hidden, x";proto=https'}, "10.0.0.1:4000", ""),
        (
            {
                "forwarded": "for=203.0.113.7;proto=https;host=a",
                "x_forwarded_for": "203.0.113.7",
                "x_forwarded_proto": "https",
                "x_forwarded_host": "a",
            },
            "203.0.113.7",
            "https://a",
        ),
        # A proxy that writes one of them passes on the other as the agent sent it.
        (
            {"host": "h", "forwarded": "for=6.6.6.6;proto=https;host=evil", "x_forwarded_for": "203.0.113.7"},
            "10.0.0.1:4000",
            "http://h",
        ),
        (
            {"host": "h", "forwarded": "for=203.0.113.7", "x_forwarded_for": "203.0.113.7", "x_forwarded_host": "evil"},
            "10.0.0.1:4000",
            "http://h",
        ),
    ],
)
def test_headers_of_a_trusted_proxy_are_used(headers: dict[str, str], remote: str, base_url: str) -> None:
    found = peer(**headers)
    assert (found.remote, found.base_url) == (remote, base_url)


def test_headers_from_elsewhere_are_ignored_and_the_first_recorded() -> None:
    proxies = TrustedProxies(["10.0.0.0/8"])
    for ip in ("192.0.2.1", "192.0.2.2"):
        found = proxies.peer(
            (ip, 1), {"x-forwarded-for": "1.1.1.1", "host": "h", "x-forwarded-proto": "https"}, scheme="http"
        )
        assert (found.remote, found.base_url) == (f"{ip}:1", "http://h")
    assert proxies.first_untrusted == "192.0.2.1"


def test_trusted_networks() -> None:
    assert not TrustedProxies().trusts("127.0.0.1")
    assert TRUSTED.trusts("10.255.0.1")
    assert TRUSTED.trusts("::1")
    assert TRUSTED.trusts("::ffff:10.0.0.1")
    assert not TRUSTED.trusts("11.0.0.1")
    assert not TRUSTED.trusts("")


def v2(command: int, family: int, body: bytes) -> bytes:
    return V2 + bytes([command, family]) + len(body).to_bytes(2, "big") + body


FOUR = bytes([1, 2, 3, 4, 5, 6, 7, 8]) + (99).to_bytes(2, "big") + (4320).to_bytes(2, "big")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"PROXY TCP4 1.2.3.4 5.6.7.8 99 4320\r\nGET", ProxyHeader(36, ("1.2.3.4", 99))),
        (b"PROXY TCP6 ::1 ::2 99 4320\r\n", ProxyHeader(28, ("::1", 99))),
        (b"PROXY UNKNOWN\r\n", ProxyHeader(15, None)),
        (b"PROXY TCP4 1.2.3.4", None),
        (b"PRO", None),
        (b"\r\n\r\n", None),
        (b"POST / HTTP/1.1", False),
        (b"\r\nGET", False),
        (v2(0x21, 0x11, FOUR) + b"rest", ProxyHeader(28, ("1.2.3.4", 99))),
        (v2(0x21, 0x21, bytes(15) + b"\1" + bytes(16) + b"\0\x63\0\0tlv"), ProxyHeader(55, ("::1", 99))),
        (v2(0x20, 0, b""), ProxyHeader(16, None)),
        (v2(0x21, 0x31, bytes(216)), ProxyHeader(232, None)),
        (v2(0x21, 0x11, FOUR)[:-1], None),
        (V2 + b"\x21", None),
    ],
)
def test_proxy_headers(data: bytes, expected: object) -> None:
    assert proxy_header(data) == expected


@pytest.mark.parametrize(
    "data",
    [
        b"PROXY " + b"x" * 120,
        b"PROXY TCP4 a b c d\r\n",
        b"PROXY TCP4 1.2.3.4 5.6.7.8 99\r\n",
        b"PROXY TCP4 nonsense 5.6.7.8 99 1\r\n",
        v2(0x11, 0x11, FOUR),
        v2(0x21, 0x11, b"short"),
        V2 + b"\x21\x11\xff\xff",
    ],
)
def test_malformed_proxy_headers_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        proxy_header(data)


@given(st.binary(max_size=300))
def test_proxy_header_raises_only_value_error(tail: bytes) -> None:
    for data in (tail, V1 + tail, V2 + tail):
        try:
            header = proxy_header(data)
        except ValueError:
            continue
        assert header is None or header is False or isinstance(header, ProxyHeader)


@given(st.text(max_size=80))
def test_headers_of_a_trusted_proxy_may_be_anything(text: str) -> None:
    peer(forwarded=text, host=text)
    peer(x_forwarded_for=text, x_forwarded_host=text, x_forwarded_proto=text)


def test_peer_of_a_closed_connection() -> None:
    assert address_of(None) == ("", None)
    assert scheme_of(None) == "http"
