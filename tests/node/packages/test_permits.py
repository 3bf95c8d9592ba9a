from __future__ import annotations

from relay.node.packages.permits import permits
from tests.policy.filled import LINUX, filled, package

ONE = package("agent", "1", ("1", {}), ("2", LINUX))


def test_files_of_the_policy_are_permitted() -> None:
    assert permits(filled(ONE), 0, require_signature=False) == {"1" * 64: "", "2" * 64: ""}


def test_yanked_file_is_denied_unless_another_version_has_it() -> None:
    both = filled(ONE, package("b", "1", ("1", {})), yanked=("agent@1",))
    assert permits(both, 0, require_signature=False) == {"1" * 64: "", "2" * 64: "package agent@1 was yanked"}


def test_unreadable_signing_key_permits_nothing() -> None:
    snapshot = filled(ONE)
    object.__setattr__(snapshot, "signing_keys", {"broken": "no pem"})
    assert all(permits(snapshot, 0, require_signature=True).values())
