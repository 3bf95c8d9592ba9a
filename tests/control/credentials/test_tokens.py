from __future__ import annotations

import pytest

from relay.auth.secrets import TOKEN_FORM
from relay.control.access.actor import Actor
from relay.control.access.roles import Grant, Grants, Role
from relay.control.credentials import tokens as module
from relay.control.credentials.tokens import TokenRegistry, TokenRequest
from relay.control.ledger.ledger import Ledger
from relay.errors import Conflict, Forbidden, NotFound, Refused
from relay.testing.clock import ManualClock
from tests.control.actors import ANN

CI = TokenRequest("ci", Grant(Role.AUTHOR, {"team": "a"}), 3600)
AUTHOR = Actor("bob", verified=True, grants=Grants((Grant(Role.AUTHOR, {"team": "a"}),)))
ADMIN = Actor("root", verified=True, grants=Grants((Grant(Role.ADMIN),)))


@pytest.fixture
def registry(ledger: Ledger) -> TokenRegistry:
    return TokenRegistry(ledger)


async def test_token_acts_as_its_creator_or_whom_an_admin_names(registry: TokenRegistry, clock: ManualClock) -> None:
    token, secret = await registry.create(CI, actor=AUTHOR)
    assert TOKEN_FORM.fits(secret)
    assert (token.owner, token.grant, token.expires_ms) == ("bob", CI.grant, clock.unix_ms() + 3_600_000)
    named = TokenRequest("ci", Grant(Role.VIEWER), 3600, owner="carol")
    assert (await registry.create(named, actor=ADMIN))[0].owner == "carol"


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (TokenRequest("x", Grant(Role.AUTHOR), 60), "at most what you may: author for team=a"),
        (TokenRequest("x", Grant(Role.ADMIN, {"team": "a"}), 60), "at most what you may"),
        (TokenRequest("x", Grant(Role.VIEWER, {"team": "b"}), 60), "at most what you may"),
        (
            TokenRequest("x", CI.grant, 60, owner="root"),
            "only an admin without a scope may make tokens for somebody else",
        ),
    ],
)
async def test_attack_token_that_may_more_than_its_maker(
    registry: TokenRegistry, request_: TokenRequest, reason: str
) -> None:
    with pytest.raises(Forbidden, match=reason):
        await registry.create(request_, actor=AUTHOR)


async def test_deletion(registry: TokenRegistry, ledger: Ledger, clock: ManualClock) -> None:
    mine, _ = await registry.create(CI, actor=AUTHOR)
    theirs, _ = await registry.create(CI, actor=ADMIN)
    with pytest.raises(Forbidden, match="somebody else's"):
        await registry.delete(theirs.id, actor=AUTHOR)
    await registry.delete(mine.id, actor=AUTHOR)
    with pytest.raises(NotFound):
        await registry.delete(mine.id, actor=ANN)
    clock.advance(32 * 86_400)
    await registry.forget_expired(clock.unix_ms(), actor=ANN)
    assert ledger.state.tokens == {}
    await registry.forget_expired(clock.unix_ms(), actor=ANN)


async def test_tokens_are_bounded(registry: TokenRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_TOKENS", 1)
    await registry.create(CI, actor=ANN)
    with pytest.raises(Conflict, match="1 tokens, the maximum"):
        await registry.create(CI, actor=ANN)


SCOPED_ADMIN = Actor("eve", verified=True, grants=Grants((Grant(Role.ADMIN, {"team": "a"}),)))


async def test_attack_scoped_admin_acts_for_others(registry: TokenRegistry) -> None:
    theirs, _ = await registry.create(TokenRequest("x", Grant(Role.VIEWER), 60), actor=ADMIN)
    with pytest.raises(Forbidden):
        await registry.create(TokenRequest("x", CI.grant, 60, owner="alice"), actor=SCOPED_ADMIN)
    with pytest.raises(Forbidden):
        await registry.delete(theirs.id, actor=SCOPED_ADMIN)


async def test_attack_lesser_token_deletes_a_greater_one_of_the_same_owner(registry: TokenRegistry) -> None:
    greater, _ = await registry.create(TokenRequest("x", Grant(Role.ADMIN), 60), actor=ADMIN)
    lesser = Actor("root", verified=True, grants=Grants((Grant(Role.VIEWER, {"team": "a"}),)))
    with pytest.raises(Forbidden, match="may do more than you"):
        await registry.delete(greater.id, actor=lesser)
    await registry.delete(greater.id, actor=ADMIN)


async def test_attack_one_person_takes_all_places(registry: TokenRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_TOKENS_OF_ONE", 1)
    await registry.create(CI, actor=AUTHOR)
    with pytest.raises(Conflict, match="bob has 1 tokens, the maximum for one"):
        await registry.create(CI, actor=AUTHOR)
    await registry.create(CI, actor=ADMIN)
    await registry.adopt(TOKEN_FORM.make(bytes(TOKEN_FORM.chance_bytes)), CI, actor=AUTHOR)


@pytest.mark.parametrize("scope", [{"k": "x" * 257}, {"k" * 129: "x"}, {"k": "a\nb"}, {str(n): "x" for n in range(33)}])
async def test_attack_scope_that_fills_the_policy(registry: TokenRegistry, scope: dict[str, str]) -> None:
    with pytest.raises(Refused):
        await registry.create(TokenRequest("x", Grant(Role.VIEWER, scope), 60), actor=ADMIN)


async def test_scope_may_be_a_region_and_tells_what_it_was_made_with(registry: TokenRegistry) -> None:
    maker = Actor("root", verified=True, credential="token-1", grants=Grants((Grant(Role.ADMIN),)))
    token, _ = await registry.create(TokenRequest("x", Grant(Role.VIEWER, {"region": "eu"}), 60), actor=maker)
    assert token.made_with == "token-1"
