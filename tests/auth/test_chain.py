from __future__ import annotations

from dataclasses import replace

import pytest

from relay.auth.addresses import AddressRules
from relay.auth.certificates import CertificateVerifier
from relay.auth.chain import Chain, KeyVerifier
from relay.auth.principal import Method, Principal, Reason
from relay.auth.revocations import Kind, Revocations
from relay.auth.secrets import SecretForm, digest_of, id_of
from relay.auth.tokens import TokenRules, TokenVerifier, secret_key
from tests.auth.builders import NOW, SECRET, certificate, token

IP = "192.0.2.1"
FORM = SecretForm("opamp_")
KEY, OLD, OTHER = (FORM.make(bytes([n] * FORM.chance_bytes)) for n in (50, 100, 150))
OWNER = Principal("web", Method.API_KEY, id_of(digest_of(KEY)), labels={"team": "a"}, expires_at=NOW + 1)
STORED = {
    id_of(digest_of(KEY)): (digest_of(KEY), OWNER),
    id_of(digest_of(OLD)): (digest_of(OLD), replace(OWNER, expires_at=NOW)),
}
TOKENS = TokenVerifier([secret_key(SECRET)], TokenRules())
API_KEYS = KeyVerifier(FORM, STORED.get)
CERTIFICATES = CertificateVerifier()
ANY = Chain(tokens=TOKENS, api_keys=API_KEYS, certificates=CERTIFICATES)


def bearer(credential: str) -> str:
    return f"Bearer {credential}"


def subject(found: Principal | Reason) -> str:
    return found.subject if isinstance(found, Principal) else f"refused: {found}"


@pytest.mark.parametrize(
    ("authorization", "der", "outcome"),
    [
        (bearer(token()), None, "agent-001"),
        (bearer(KEY), None, "web"),
        (f"bearer   {KEY}", None, "web"),
        (None, certificate(["a-7"]), "a-7"),
        (bearer(KEY), certificate(["a-7"]), "web"),
        (bearer("x"), certificate(["a-7"]), "refused: malformed"),
        (None, None, "refused: no_credential"),
        ("", None, "refused: malformed"),
        ("Basic YTpi", None, "refused: malformed"),
        (f"Bearer {KEY} ", None, "refused: malformed"),
        (f"Bearer {KEY},{KEY}", None, "refused: malformed"),
        (f"Bearer{KEY}", None, "refused: malformed"),
        (bearer("x" * 8200), None, "refused: malformed"),
        (bearer(OLD), None, "refused: expired"),
        (bearer(OTHER), None, "refused: unknown_key"),
        (bearer(KEY[:-1] + "0"), None, "refused: malformed"),
    ],
)
def test_any_credential(authorization: str | None, der: bytes | None, outcome: str) -> None:
    assert subject(ANY.authenticate(authorization, der, IP, NOW)) == outcome


def test_api_key_that_never_ends() -> None:
    forever = replace(OWNER, expires_at=None)
    assert API_KEYS.verify(KEY, NOW) == OWNER
    assert KeyVerifier(FORM, lambda _: (digest_of(KEY), forever)).verify(KEY, NOW * 2) == forever


def test_api_key_is_more_than_its_id() -> None:
    alike = KeyVerifier(FORM, lambda _: (digest_of(OTHER), OWNER))
    assert alike.verify(KEY, NOW) is Reason.UNKNOWN_KEY


def test_session_is_reconsidered_by_what_is_known_now() -> None:
    chain = Chain(tokens=TOKENS, api_keys=API_KEYS)
    assert chain.reconsidered(replace(OWNER, labels={})) == OWNER
    assert chain.reconsidered(replace(OWNER, credential_id=id_of(digest_of(OTHER)))) is None, "it was deleted"
    shortened = chain.reconsidered(replace(OWNER, credential_id=id_of(digest_of(OLD)), expires_at=NOW + 9))
    assert shortened is not None
    assert shortened.expires_at == NOW, "it was replaced since"
    assert Chain(tokens=TOKENS).reconsidered(OWNER) is OWNER


def test_only_what_is_accepted_counts() -> None:
    calls: list[tuple[str, bytes | None]] = [(bearer(token()), None), (bearer(KEY), None), (bearer(KEY), certificate())]
    for chain, outcomes in (
        (Chain(tokens=TOKENS), ("agent-001", "refused: malformed", "refused: malformed")),
        (Chain(api_keys=API_KEYS), ("refused: malformed", "web", "web")),
        (Chain(certificates=CERTIFICATES), ("refused: no_credential", "refused: no_credential", "agent-001")),
        (Chain(), ("refused: no_credential",) * 3),
    ):
        assert tuple(subject(chain.authenticate(header, der, IP, NOW)) for header, der in calls) == outcomes


def test_certificate_besides_a_token() -> None:
    chain = Chain(tokens=TOKENS, required_certificates=CERTIFICATES)
    assert chain.authenticate(bearer(token()), None, IP, NOW) is Reason.NO_CREDENTIAL
    assert subject(chain.authenticate(bearer(token()), certificate(["x"]), IP, NOW)) == "agent-001"
    assert chain.authenticate(bearer(token()), certificate(["x"], valid=(1, NOW)), IP, NOW) is Reason.EXPIRED


class CountingVerifier(CertificateVerifier):
    calls = 0

    def verify(self, der: bytes, now: float) -> Principal | Reason:
        self.calls += 1
        return super().verify(der, now)


def test_required_certificate_that_names_the_agent_is_verified_once() -> None:
    verifier = CountingVerifier()
    chain = Chain(certificates=verifier, required_certificates=verifier)
    assert subject(chain.authenticate(None, certificate(["a-7"]), IP, NOW)) == "a-7"
    assert verifier.calls == 1


def test_addresses_come_first() -> None:
    chain = Chain(tokens=TOKENS, addresses=AddressRules(deny=["192.0.2.0/24"]))
    assert chain.authenticate(bearer(token()), None, IP, NOW) is Reason.ADDRESS
    assert not chain.admits(IP)
    assert chain.admits("198.51.100.1")


def test_revocation() -> None:
    chain = Chain(tokens=TOKENS, revocations=Revocations([(Kind.AGENT, "agent-001")]))
    assert chain.authenticate(bearer(token()), None, IP, NOW) is Reason.REVOKED
    other = chain.authenticate(bearer(token(sub="agent-002")), None, IP, NOW)
    assert isinstance(other, Principal)
    assert chain.reconsidered(other) is other
    assert chain.reconsidered(replace(other, agent_id="agent-001")) is None
