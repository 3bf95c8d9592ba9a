from __future__ import annotations

import pytest

from relay.transport.head import Head, Refusal, parse_head, upgrade_answer, upgrade_refusal

KEY = "dGhlIHNhbXBsZSBub25jZQ=="


def upgrade(**headers: str) -> Head:
    base = {
        "host": "node:4320",
        "upgrade": "websocket",
        "connection": "Upgrade",
        "sec-websocket-version": "13",
        "sec-websocket-key": KEY,
    }
    return Head("GET", "/v1/opamp", {**base, **{name.replace("_", "-"): value for name, value in headers.items()}})


def test_heads_are_parsed_strictly() -> None:
    head = parse_head(b"GET /a?b=c HTTP/1.1\r\nHost: h\r\nX-Y:  z ")
    assert head is not None
    assert (head.method, head.path, head.query, head.headers) == ("GET", "/a", "b=c", {"host": "h", "x-y": "z"})
    for bad in (b"", b"GET /", b"GET / HTTP/2", b"GET x HTTP/1.1", b"GET http:// HTTP/1.1", b"GET / HTTP/1.1\r\nno colon",
                b"GET / HTTP/1.1\r\n folded: x", b"GET / HTTP/1.1\r\n: x", b"GET ftp://h/ HTTP/1.1"):  # fmt: skip
        assert parse_head(bad) is None, bad


def test_absolute_form_of_a_proxy() -> None:
    head = parse_head(b"GET HTTP://node:4320/v1/opamp?x=1 HTTP/1.1\r\nHost: other")
    assert head is not None
    assert (head.path, head.query, head.headers["host"]) == ("/v1/opamp", "x=1", "node:4320")
    bare = parse_head(b"GET http://node HTTP/1.1")
    assert bare is not None
    assert bare.path == "/"


def test_repeated_headers_become_one_list() -> None:
    head = parse_head(b"GET / HTTP/1.1\r\nConnection: keep-alive\r\nConnection: Upgrade")
    assert head is not None
    assert head.tokens("connection") == ["keep-alive", "upgrade"]


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, True),
        ({"connection": "keep-alive, Upgrade"}, True),
        ({"upgrade": "h2c, websocket"}, True),
        ({"upgrade": "h2c"}, False),
        ({"connection": "keep-alive"}, False),
    ],
)
def test_websocket_upgrade_is_detected(headers: dict[str, str], expected: bool) -> None:
    assert upgrade(**headers).is_upgrade is expected


def test_post_is_no_upgrade() -> None:
    assert not Head("POST", "/v1/opamp", upgrade().headers).is_upgrade


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, None),
        ({"origin": "http://node"}, None),
        ({"origin": "http://node:80"}, None),
        ({"origin": "https://node:4320"}, None),
        ({"origin": "null"}, None),
        ({"origin": "http://evil"}, 403),
        ({"origin": "http://[bad"}, 403),
        ({"sec_websocket_version": "8"}, 426),
        ({"sec_websocket_key": "short"}, 400),
        ({"sec_websocket_key": "dGhlIHNhbXBsZQ=="}, 400),
    ],
)
def test_upgrade_refusals(headers: dict[str, str], status: int | None) -> None:
    refusal = upgrade_refusal(upgrade(**headers), "/v1/opamp", "node:4320")
    assert (refusal.status if refusal else None) == status
    if status == 426:
        assert refusal is not None
        assert b"Sec-WebSocket-Version: 13\r\n" in refusal.answer()


def test_upgrade_on_other_paths_is_refused() -> None:
    assert upgrade_refusal(upgrade(), "/else", "node") == Refusal(404, "path")


def test_answers_carry_the_server_header() -> None:
    answer = upgrade_answer(upgrade())
    assert b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n" in answer, "the example of RFC 6455"
    assert b"Server: opamp-relay\r\n" in answer
    assert Refusal(503, "full").answer().endswith(b"Content-Length: 5\r\n\r\nfull\n")
