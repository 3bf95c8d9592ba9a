"""Who may join: with real keys, without sockets."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from relay.auth.identities import NodeCertificate, node_certificate
from relay.auth.join_tokens import read_join_token
from relay.control.join import registry as module
from relay.control.join.registry import GrantRequest, JoinRegistry, Lifetimes
from relay.control.keys.trust import Trust
from relay.control.ledger.audit import Audit
from relay.control.ledger.ledger import Ledger
from relay.control.storage.database import Database
from relay.errors import Conflict, Forbidden, NotFound, Refused
from relay.testing.clock import ManualClock
from tests.control.actors import ANN
from tests.control.join.joining import csr

DAY_S = 86_400.0
KEY, OTHER = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))


class Stand:
    def __init__(self, registry: JoinRegistry, ledger: Ledger, clock: ManualClock, trust: Trust) -> None:
        self.registry, self.ledger, self.clock, self.trust = registry, ledger, clock, trust

    async def grant(self, region: str = "eu", **more: object) -> tuple[str, str]:
        """(id, secret) of a new join token."""
        _, text = await self.registry.grant(GrantRequest(region, **more), actor=ANN)  # type: ignore[arg-type]
        token = read_join_token(text)
        return token.id, token.secret

    async def join(
        self, grant: tuple[str, str], name: str = "one", key: ec.EllipticCurvePrivateKey = KEY
    ) -> NodeCertificate:
        return self.named(await self.registry.join(*grant, csr(key), name, address="192.0.2.1"))

    async def renew(self, key: ec.EllipticCurvePrivateKey = KEY) -> NodeCertificate:
        return self.named(await self.registry.renew(csr(key), address="192.0.2.1"))

    def named(self, pem: bytes) -> NodeCertificate:
        found = node_certificate(pem, self.clock.unix_ms() / 1000)
        assert isinstance(found, NodeCertificate)
        return found


@pytest.fixture
async def stand(ledger: Ledger, trust: Trust, clock: ManualClock) -> Stand:
    lifetimes = Lifetimes(7 * DAY_S, 30 * DAY_S)
    return Stand(JoinRegistry(ledger, trust, lifetimes, lambda: ("cp:1", "cp:2"), clock=clock), ledger, clock, trust)


async def test_token_says_where_and_whom_to_trust(stand: Stand) -> None:
    grant, text = await stand.registry.grant(GrantRequest("eu"), actor=ANN)
    token = read_join_token(text)
    assert (token.join, token.link, token.root) == ("cp:1", "cp:2", stand.trust.root)
    assert token.secret not in str(grant.plain())


async def test_region_comes_from_the_token(stand: Stand) -> None:
    certificate = await stand.join(await stand.grant("eu"))
    assert certificate.key == "eu/one"
    assert stand.registry.refusal(certificate) == ""
    assert certificate.not_after == stand.clock.unix_ms() // 1000 + 7 * DAY_S
    named = await stand.join(await stand.grant("us", name="fixed"), name="asked", key=OTHER)
    assert named.key == "us/fixed"


async def test_lost_answer_is_given_again(stand: Stand) -> None:
    grant = await stand.grant()
    first = await stand.join(grant)
    assert (await stand.join(grant)).key_digest == first.key_digest
    stand.clock.advance(2 * 3600)
    await stand.join(grant)


async def test_attack_tokens_that_do_not_admit(stand: Stand, database: Database) -> None:
    grant_id, secret = grant = await stand.grant()
    for wrong in ((grant_id, "x"), ("join-0", secret), ("", "")):
        with pytest.raises(Forbidden, match="unknown, used up or expired"):
            await stand.join(wrong)
    await stand.join(grant)
    with pytest.raises(Forbidden):
        await stand.join(grant, key=OTHER)
    with pytest.raises(Forbidden):
        await stand.join(grant, name="two")
    late = await stand.grant(lifetime_s=10)
    stand.clock.advance(10)
    with pytest.raises(Forbidden):
        await stand.join(late, "two", OTHER)
    gone = await stand.grant()
    await stand.registry.withdraw(gone[0], actor=ANN)
    with pytest.raises(Forbidden):
        await stand.join(gone, "two", OTHER)
    with pytest.raises(NotFound):
        await stand.registry.withdraw(gone[0], actor=ANN)
    refused = [e for e in await Audit(database).listing() if e["action"] == "join_refused"]
    assert [entry["address"] for entry in refused] == ["192.0.2.1", "192.0.2.1"], "at most one a second"
    assert "(and 4 more)" in refused[1]["reason"]
    assert secret not in str(await Audit(database).listing())


async def test_attack_taking_the_name_of_another_node(stand: Stand) -> None:
    first = await stand.join(await stand.grant())
    with pytest.raises(Conflict, match="eu/one has joined before, with another key"):
        await stand.join(await stand.grant(), key=OTHER)
    second = await stand.join(await stand.grant(replaces=True), key=OTHER)
    assert stand.registry.refusal(second) == ""
    assert stand.registry.refusal(first) == "node eu/one was replaced: its certificate is for another key"


async def test_token_for_several_nodes(stand: Stand) -> None:
    grant = await stand.grant(uses=2)
    await stand.join(grant)
    await stand.join(grant, "two", OTHER)
    with pytest.raises(Forbidden):
        await stand.join(grant, "three", ec.generate_private_key(ec.SECP256R1()))


async def test_renewal_long_after_the_end(stand: Stand) -> None:
    await stand.join(await stand.grant())
    stand.clock.advance(5 * DAY_S)
    assert (await stand.renew()).not_after == stand.clock.unix_ms() // 1000 + 7 * DAY_S
    stand.clock.advance(36 * DAY_S)
    await stand.renew()
    stand.clock.advance(38 * DAY_S)
    with pytest.raises(Forbidden, match="join again"):
        await stand.renew()
    with pytest.raises(Forbidden, match="join again"):
        await stand.renew(OTHER)


async def test_revoked_node_neither_renews_nor_joins_with_its_key(stand: Stand) -> None:
    certificate = await stand.join(await stand.grant())
    await stand.registry.revoke("eu/one", "stolen", actor=ANN)
    assert stand.registry.refusal(certificate) == "node eu/one is revoked: stolen"
    with pytest.raises(Forbidden):
        await stand.renew()
    with pytest.raises(Forbidden, match="this key was revoked"):
        await stand.join(await stand.grant())
    fresh = await stand.join(await stand.grant(), key=OTHER)
    assert stand.registry.refusal(fresh) == ""
    assert "replaced" in stand.registry.refusal(certificate)
    for region, name in (("eu", "one"), ("us", "other")):
        with pytest.raises(Forbidden, match="this key was revoked"):
            await stand.join(await stand.grant(region, name=name, replaces=True))
    with pytest.raises(NotFound):
        await stand.registry.revoke("eu/two", "x", actor=ANN)


async def test_attack_one_key_for_two_nodes(stand: Stand) -> None:
    await stand.join(await stand.grant("eu"))
    with pytest.raises(Forbidden, match="this key is another node's"):
        await stand.join(await stand.grant("us"), "two")


async def test_requests_at_the_same_time(stand: Stand) -> None:
    grant = await stand.grant()
    joined = await asyncio.gather(*(stand.join(grant) for _ in range(4)))
    renewed = await asyncio.gather(*(stand.renew() for _ in range(4)))
    assert len({c.key_digest for c in (*joined, *renewed)}) == 1


async def test_nodes_of_another_ca_are_revoked_by_name(stand: Stand) -> None:
    stand.registry.is_own = False
    await stand.registry.revoke("eu/two", "stolen", actor=ANN)
    assert stand.ledger.state.joined_nodes["eu/two"].revoked == "stolen"


async def test_certificates_of_others(stand: Stand) -> None:
    certificate = await stand.join(await stand.grant())
    assert "trust domain other" in stand.registry.refusal(certificate._replace(trust_domain="other"))
    assert stand.registry.refusal(certificate._replace(name="two")) == "no node eu/two has joined"


async def test_malformed_requests_and_bounds(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    grant_id, secret = await stand.grant()
    for attempt in (
        stand.registry.join(grant_id, secret, "x", "one", address=""),
        stand.registry.renew("x", address=""),
    ):
        with pytest.raises(Refused, match="not a certificate request"):
            await attempt
    monkeypatch.setattr(module, "MAX_GRANTS", 1)
    with pytest.raises(Conflict, match="1 join tokens, the maximum"):
        await stand.grant()
    stand.clock.advance(7200)
    await stand.grant()


async def test_node_that_was_away_for_too_long_joins_again_under_its_name(stand: Stand) -> None:
    await stand.join(await stand.grant("eu"))
    stand.clock.advance(37 * DAY_S + 1)
    with pytest.raises(Forbidden, match="join again"):
        await stand.renew()
    again = await stand.join(await stand.grant("eu"), key=OTHER)
    assert again.key == "eu/one"
    assert stand.registry.refusal(again) == ""


async def test_revoking_a_node_replaces_the_download_key_of_its_region(stand: Stand) -> None:
    await stand.join(await stand.grant("eu"))
    before = [stand.trust.download_keys(stand.ledger.state, region) for region in ("eu", "us")]
    await stand.registry.revoke("eu/one", "stolen", actor=ANN)
    after = [stand.trust.download_keys(stand.ledger.state, region) for region in ("eu", "us")]
    assert (set(before[0]) & set(after[0]), before[1]) == (set(), after[1])


async def test_nodes_with_a_former_ca_are_known(stand: Stand) -> None:
    await stand.join(await stand.grant("eu"))
    assert stand.registry.still_with_former_ca() == []
    state = stand.ledger.state
    former = dataclasses.replace(state.joined_nodes["eu/one"], ca="former")
    stand.ledger.state = dataclasses.replace(state, joined_nodes={"eu/one": former})
    assert stand.registry.still_with_former_ca() == ["eu/one"]
    await stand.renew()
    assert stand.registry.still_with_former_ca() == []
