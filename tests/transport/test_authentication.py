from __future__ import annotations

from typing import Any

import pytest

from relay.auth.addresses import AddressRules
from relay.auth.certificates import CertificateVerifier
from relay.auth.chain import Chain
from relay.auth.principal import Method, Principal, Reason
from relay.auth.revocations import Kind, Revocations
from relay.auth.tokens import TokenRules, TokenVerifier, secret_key
from relay.observe.metrics import NodeMetrics
from relay.testing.clock import ManualClock
from relay.transport import authentication
from relay.transport.authentication import Authenticator
from tests.auth.builders import SECRET, certificate, token

IP, REMOTE = "192.0.2.1", "192.0.2.1:5000"


class CountingVerifier(TokenVerifier):
    calls = 0

    def verify(self, token: str, now: float) -> Principal | Reason:
        self.calls += 1
        return super().verify(token, now)


class Bench:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.now = self.clock.unix_ms() / 1000
        self.metrics = NodeMetrics("eu")
        self.tokens = CountingVerifier([secret_key(SECRET)], TokenRules())
        self.authenticator = Authenticator(Chain(tokens=self.tokens), clock=self.clock, metrics=self.metrics)

    def header(self, **claims: Any) -> dict[str, str]:
        made = {"iat": self.now, "exp": self.now + 600, **claims}
        return {"authorization": f"Bearer {token(**made)}"}

    def ask(self, headers: dict[str, str], der: bytes | None = None) -> Principal | Reason | None:
        return self.authenticator.authenticate(headers.get("authorization"), der, IP, REMOTE)


def test_without_a_chain_nobody_needs_credentials() -> None:
    authenticator = Authenticator(None, clock=ManualClock(), metrics=NodeMetrics("eu"))
    assert authenticator.authenticate(None, None, IP, REMOTE) is None
    assert not authenticator.is_required
    assert authenticator.admits(IP)
    principal = Principal("a", Method.JWT, "")
    assert authenticator.reconsidered(principal) is principal


def test_verified_headers_are_remembered_until_they_end() -> None:
    bench = Bench()
    header = bench.header()
    found = [bench.ask(header) for _ in range(3)]
    assert isinstance(found[0], Principal)
    assert found == [found[0]] * 3
    assert bench.tokens.calls == 1
    assert not bench.authenticator.has_ended(found[0])
    assert not bench.authenticator.has_ended(None)
    assert bench.authenticator.reconsidered(None) is None
    assert bench.authenticator.reconsidered(found[0]) is found[0]
    bench.clock.advance(660)
    assert bench.ask(header) is Reason.EXPIRED
    assert bench.authenticator.has_ended(found[0])


def test_new_revocations_apply_to_remembered_headers() -> None:
    bench = Bench()
    header = bench.header()
    principal = bench.ask(header)
    assert isinstance(principal, Principal)
    revocations = Revocations([(Kind.SUBJECT, principal.subject)])
    bench.authenticator.use(Chain(tokens=bench.tokens, revocations=revocations))
    assert bench.authenticator.reconsidered(principal) is None
    assert bench.ask(header) is Reason.REVOKED


def test_remembered_headers_are_good_only_from_addresses_that_are_allowed() -> None:
    bench = Bench()
    bench.authenticator.use(Chain(tokens=bench.tokens, addresses=AddressRules(deny=["198.51.100.0/24"])))
    header = bench.header()
    assert isinstance(bench.ask(header), Principal)
    assert (
        bench.authenticator.authenticate(header["authorization"], None, "198.51.100.7", "198.51.100.7:1")
        is Reason.ADDRESS
    )
    assert not bench.authenticator.admits("198.51.100.7")


def test_attack_header_that_came_beside_a_certificate() -> None:
    bench = Bench()
    header = {"authorization": "Bearer x"}
    bench.authenticator.use(Chain(certificates=CertificateVerifier()))
    der = certificate(["victim"], valid=(bench.now - 60, bench.now + 3600))
    for _ in range(2):
        assert isinstance(bench.ask(header, der), Principal)
        assert bench.ask(header) is Reason.NO_CREDENTIAL, "the certificate was the proof, not the header"


def test_attack_token_without_the_certificate_that_is_required() -> None:
    bench = Bench()
    bench.authenticator.use(Chain(tokens=bench.tokens, required_certificates=CertificateVerifier()))
    header = bench.header()
    der = certificate(["any"], valid=(bench.now - 60, bench.now + 3600))
    assert isinstance(bench.ask(header, der), Principal)
    assert bench.ask(header) is Reason.NO_CREDENTIAL


@pytest.mark.parametrize("value", ["Bearer \udcff", "Bearer é", "x" * 100_000])
def test_attack_header_that_is_no_text(value: str) -> None:
    assert Bench().ask({"authorization": value}) is Reason.MALFORMED


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authentication, "_MAX_REMEMBERED", 2)
    bench = Bench()
    headers = [bench.header(sub=f"a-{number}") for number in range(3)]
    for header in (headers[0], headers[1], headers[0], headers[2], headers[0]):
        bench.ask(header)
    assert bench.tokens.calls == 3, "the one that was used least recently goes"
    bench.ask(headers[1])
    assert bench.tokens.calls == 4


def test_refusals_are_counted_and_listed(capsys: pytest.CaptureFixture[str]) -> None:
    bench = Bench()
    assert bench.ask({}) is Reason.NO_CREDENTIAL
    assert bench.ask({}, certificate()) is Reason.NO_CREDENTIAL
    assert bench.ask({"authorization": "Bearer x"}) is Reason.MALFORMED
    bench.ask(bench.header())
    assert bench.metrics.authentications == {
        ("none", "no_credential"): 1,
        ("certificate", "no_credential"): 1,
        ("header", "malformed"): 1,
        ("jwt", "ok"): 1,
    }
    assert [r.reason for r in bench.authenticator.rejections] == [
        Reason.NO_CREDENTIAL, Reason.NO_CREDENTIAL, Reason.MALFORMED,
    ]  # fmt: skip
    assert b'opamp_relay_auth_total{method="jwt",result="ok"} 1.0' in bench.metrics.expose()


def test_only_addresses_that_fail_often_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authentication, "_MAX_LATE", 2)
    bench = Bench()

    def delay(ip: str = IP) -> float:
        return bench.authenticator.refusal(Reason.EXPIRED, ip).delay_s

    assert [delay() for _ in range(9)] == [0.0] * 9
    assert [delay() for _ in range(3)] == [1.0, 1.0, 0.0], "at most two wait"
    bench.authenticator.delayed()
    assert delay() == 1.0
    assert delay("198.51.100.7") == 0.0


def test_refusals_give_no_detail() -> None:
    bench = Bench()
    refusal = bench.authenticator.refusal(Reason.EXPIRED, IP)
    assert (refusal.status, refusal.reason, refusal.headers) == (
        401,
        "unauthenticated",
        (("WWW-Authenticate", "Bearer"),),
    )
    assert bench.authenticator.refusal(Reason.ADDRESS, IP).status == 403
