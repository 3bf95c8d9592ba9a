"""Logins at a real OpenID provider, which misbehaves on request."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from relay.auth.openid import Person
from relay.control.credentials import logins as module
from relay.control.credentials.logins import Logins, Waiting
from relay.errors import Conflict, Forbidden, Refused, UpstreamError
from relay.settings.auth import Oidc
from relay.testing.clock import ManualClock
from tests.openid.provider import CLIENT_ID, SECRET, OpenIdProvider, browse, openid_provider

REDIRECT = "http://127.0.0.1:5/callback"


@pytest.fixture(scope="module")
def provider() -> Iterator[OpenIdProvider]:
    with openid_provider() as started:
        yield started


@pytest.fixture
def file(tmp_path: Path) -> str:
    (tmp_path / "secret").write_text(f"{SECRET}\n")
    return str(tmp_path / "secret")


def logins_of(issuer: str, file: str, clock: ManualClock, *, device: bool = False) -> Logins:
    settings = Oidc(issuer=issuer, client_id=CLIENT_ID, client_secret_file=file, device_flow=device)
    return Logins(settings, clock=clock)


def real_clock() -> ManualClock:
    import time

    return ManualClock(time.time_ns() // 1_000_000)


async def log_in(logins: Logins, account: str = "alice", **changes: str) -> Person:
    secret, url = await logins.begin(REDIRECT, "192.0.2.1")
    last = await browse(url, account, until=REDIRECT)
    query = {key: values[0] for key, values in parse_qs(urlsplit(last).query).items()}
    answer = {
        "login": secret,
        "code": query.get("code", ""),
        "state": query["state"],
        "issuer": query["iss"],
        **changes,
    }
    return await logins.finish(**answer)


async def test_person_logs_in(provider: OpenIdProvider, file: str) -> None:
    logins = logins_of(provider.issuer, file, real_clock())
    assert await log_in(logins) == Person(f"{provider.issuer}|alice", "alice", ("platform",))
    assert (await log_in(logins, "mallory")).groups == ()
    await provider.tell(rotate=True)
    assert (await log_in(logins, "bob")).groups == ("viewers", "team-a"), "its keys are fetched again"
    assert logins._pending == {}


@pytest.mark.parametrize(
    ("mode", "reason"),
    [
        ("wrong-aud", "another audience"),
        ("wrong-azp", "another client"),
        ("wrong-iss", "another issuer"),
        ("wrong-nonce", "nonce"),
        ("no-nonce", "nonce"),
        ("expired", "has expired"),
        ("no-exp", "no exp"),
        ("future-iat", "not valid yet"),
        ("no-sub", "no usable sub"),
        ("other-key", "not signed"),
        ("tampered", "not signed"),
        ("alg-none", "not signed"),
        ("hs256-secret", "not signed"),
        ("hs256-public-key", "not signed"),
        ("garbage", "not signed"),
        ("no-id-token", "sent no ID token"),
    ],
)
async def test_attack_id_token(provider: OpenIdProvider, file: str, mode: str, reason: str) -> None:
    logins = logins_of(provider.issuer, file, real_clock())
    await provider.tell(mode=mode)
    try:
        with pytest.raises(Forbidden, match=reason):
            await log_in(logins)
    finally:
        await provider.tell(mode="ok")
    assert (await log_in(logins)).user == "alice"


async def test_clock_of_the_provider_may_differ(provider: OpenIdProvider, file: str) -> None:
    await provider.tell(mode="just-expired")
    try:
        assert (await log_in(logins_of(provider.issuer, file, real_clock()))).user == "alice"
    finally:
        await provider.tell(mode="ok")


async def test_attack_configuration_of_another_issuer(provider: OpenIdProvider, file: str) -> None:
    await provider.tell(mode="other-issuer")
    try:
        with pytest.raises(UpstreamError, match="not that of the issuer"):
            await log_in(logins_of(provider.issuer, file, real_clock()))
    finally:
        await provider.tell(mode="ok")


async def test_attack_redirects(provider: OpenIdProvider, file: str) -> None:
    logins = logins_of(provider.issuer, file, real_clock())
    for change in ({"state": "x"}, {"issuer": "http://evil"}, {"issuer": ""}, {"code": "x"}, {"login": "x"}):
        with pytest.raises(Forbidden):
            await log_in(logins, **change)
    secret, url = await logins.begin(REDIRECT, "192.0.2.1")
    last = await browse(url, "alice", until=REDIRECT)
    query = {key: values[0] for key, values in parse_qs(urlsplit(last).query).items()}
    await logins.finish(secret, query["code"], query["state"], query["iss"])
    with pytest.raises(Forbidden, match="no such login"):
        await logins.finish(secret, query["code"], query["state"], query["iss"])
    for uri in ("http://evil:5/callback", "https://127.0.0.1:5/callback"):
        with pytest.raises(Refused):
            await logins.begin(uri, "192.0.2.1")


async def test_attack_code_of_another_login(provider: OpenIdProvider, file: str) -> None:
    """A code that somebody else was given is useless without the verifier of its own login."""
    logins = logins_of(provider.issuer, file, real_clock())
    _, url = await logins.begin(REDIRECT, "192.0.2.1")
    stolen = parse_qs(urlsplit(await browse(url, "alice", until=REDIRECT)).query)["code"][0]
    with pytest.raises(Forbidden, match="invalid_grant"):
        await log_in(logins, "mallory", code=stolen)


async def test_secret_that_is_wrong(provider: OpenIdProvider, tmp_path: Path) -> None:
    (tmp_path / "wrong").write_text("wrong")
    with pytest.raises(Forbidden, match="invalid_client"):
        await log_in(logins_of(provider.issuer, str(tmp_path / "wrong"), real_clock()))
    with pytest.raises(Forbidden, match="invalid_client"):
        await log_in(logins_of(provider.issuer, "", real_clock()))


async def test_login_that_takes_too_long(provider: OpenIdProvider, file: str) -> None:
    clock = real_clock()
    logins = logins_of(provider.issuer, file, clock)
    secret, _ = await logins.begin(REDIRECT, "192.0.2.1")
    clock.advance(601)
    with pytest.raises(Forbidden, match="begin again"):
        await logins.finish(secret, "c", "s", "")


async def test_logins_are_bounded(provider: OpenIdProvider, file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PENDING", 3)
    monkeypatch.setattr(module, "MAX_PENDING_OF_ONE", 2)
    clock = real_clock()
    logins = logins_of(provider.issuer, file, clock)
    for _ in range(2):
        await logins.begin(REDIRECT, "192.0.2.1")
    with pytest.raises(Conflict, match="from this address"):
        await logins.begin(REDIRECT, "192.0.2.1")
    await logins.begin(REDIRECT, "192.0.2.2")
    with pytest.raises(Conflict, match="3 logins are under way"):
        await logins.begin(REDIRECT, "192.0.2.3")
    clock.advance(601)
    await logins.begin(REDIRECT, "192.0.2.1")


async def test_provider_that_is_away(file: str) -> None:
    with pytest.raises(UpstreamError, match="cannot be reached"):
        await logins_of("http://127.0.0.1:1", file, real_clock()).begin(REDIRECT, "")


# ---- on another device


async def test_person_logs_in_on_another_device(provider: OpenIdProvider, file: str) -> None:
    clock = real_clock()
    logins = logins_of(provider.issuer, file, clock, device=True)
    secret, device = await logins.begin_device("192.0.2.1")
    with pytest.raises(Waiting):
        await logins.poll(secret)
    clock.advance(device.interval_s)
    with pytest.raises(Waiting):
        await logins.poll(secret)
    await browse(device.complete_uri, "bob")
    clock.advance(device.interval_s)
    assert (await logins.poll(secret)).user == "bob"
    with pytest.raises(Forbidden):
        await logins.poll(secret)


async def test_device_login_that_is_denied_or_not_allowed(provider: OpenIdProvider, file: str) -> None:
    clock = real_clock()
    logins = logins_of(provider.issuer, file, clock, device=True)
    secret, device = await logins.begin_device("192.0.2.1")
    await browse(device.complete_uri, "alice", deny=True)
    clock.advance(device.interval_s)
    with pytest.raises(Forbidden, match="access_denied"):
        await logins.poll(secret)
    expired, _ = await logins.begin_device("192.0.2.1")
    clock.advance(601)
    with pytest.raises(Forbidden, match="has expired"):
        await logins.poll(expired)
    with pytest.raises(Forbidden, match="device_flow is off"):
        await logins_of(provider.issuer, file, clock).begin_device("")
    browser, _ = await logins.begin(REDIRECT, "")
    with pytest.raises(Forbidden):
        await logins.poll(browser)
    other, _ = await logins.begin_device("")
    with pytest.raises(Forbidden):
        await logins.finish(other, "c", "s", "")


async def test_attack_many_logins_at_once(provider: OpenIdProvider, file: str) -> None:
    logins = logins_of(provider.issuer, file, real_clock(), device=True)
    browsers = [logins.begin(REDIRECT, "192.0.2.1") for _ in range(30)]
    devices = [logins.begin_device("192.0.2.1") for _ in range(30)]
    outcomes = await asyncio.gather(*browsers, *devices, return_exceptions=True)
    assert sum(not isinstance(outcome, Exception) for outcome in outcomes) == module.MAX_PENDING_OF_ONE
    assert len(logins._pending) == module.MAX_PENDING_OF_ONE


async def test_those_who_wait_for_a_provider_share_its_failure(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    logins, asked = logins_of("http://127.0.0.1:1", file, real_clock()), 0

    async def hang(*_: object) -> None:
        nonlocal asked
        asked += 1
        await asyncio.sleep(0.05)
        raise UpstreamError("no answer in time")

    monkeypatch.setattr(logins, "_call", hang)
    outcomes = await asyncio.gather(*(logins.begin(REDIRECT, str(i)) for i in range(10)), return_exceptions=True)
    assert {str(outcome) for outcome in outcomes} == {"no answer in time"}
    assert asked == 1
    assert logins._pending == {}


async def test_device_flow_that_the_provider_refuses(
    provider: OpenIdProvider, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    logins = logins_of(provider.issuer, file, real_clock(), device=True)
    await logins._discover()
    for answer, expected in (
        (module._Answered("unauthorized_client", None), Forbidden),
        ({"user_code": "a", "verification_uri": "b", "device_code": "c", "expires_in": "nan"}, UpstreamError),
        (
            {"user_code": "a", "verification_uri": "b", "device_code": "c", "expires_in": 5, "interval": -1},
            UpstreamError,
        ),
        ({}, UpstreamError),
    ):

        async def call(*_: object, answer: object = answer) -> object:
            if isinstance(answer, Exception):
                raise answer
            return answer

        monkeypatch.setattr(logins, "_call", call)
        with pytest.raises(expected):
            await logins.begin_device("")
