from __future__ import annotations

import pytest
from pydantic import ValidationError

from relay.settings.auth import Jwt, NodeAuth


def test_defaults_are_those_of_the_guide() -> None:
    rules = Jwt()
    assert (rules.required_claims, rules.expiration, rules.leeway) == (("sub", "exp", "iat"), 86400, 60)
    assert (rules.agent_id_claim, rules.labels_claim) == ("sub", "labels")


def test_short_form_of_the_secret_key() -> None:
    assert NodeAuth.model_validate({"type": "jwt", "secret_key_file": "k"}).token_rules == Jwt(secret_key_file="k")
    both = NodeAuth.model_validate({"type": "any", "secret_key_file": "k", "jwt": {"issuer": "i"}})
    assert both.token_rules == Jwt(secret_key_file="k", issuer="i")


@pytest.mark.parametrize(
    ("kind", "tokens", "certificates"),
    [("none", False, False), ("jwt", True, False), ("mtls", False, True), ("any", True, True)],
)
def test_accepted_credentials(kind: str, tokens: bool, certificates: bool) -> None:
    auth = NodeAuth.model_validate({"type": kind, "jwt": {"public_key_file": "k"}})
    assert (auth.token_rules is not None, auth.accepts_certificates) == (tokens, certificates)


def test_tokens_are_not_renewed_by_the_server() -> None:
    with pytest.raises(ValidationError, match="agents renew their tokens"):
        Jwt(refresh_enabled=True)
    assert Jwt.model_validate({"refresh_enabled": False, "refresh_before_expiry": "1h"}).refresh_before_expiry == 3600
