from __future__ import annotations

import json

from relay.control.access.roles import Verb
from relay.control.access.sessions import Session
from relay.policy.role_binding import RoleBinding

SESSION = Session(b"d" * 32, "https://idp|00u1", "alice", ("platform", "ops"), 1, 2)


def binding(name: str, role: str, *subjects: dict[str, str], **labels: str) -> RoleBinding:
    return RoleBinding.model_validate(
        {
            "apiVersion": "opamp.io/v1",
            "kind": "RoleBinding",
            "metadata": {"name": name},
            "spec": {"role": role, "subjects": list(subjects), "scope": {"labels": labels}},
        }
    )


def test_session_is_what_its_plain_values_say() -> None:
    assert Session.from_plain(json.loads(json.dumps(SESSION.plain()))) == SESSION
    assert SESSION.id == f"session-{b'd'.hex() * 5}"


def test_bindings_of_a_person_and_of_its_groups_add_up() -> None:
    bindings = [
        binding("a", "author", {"group": "ops"}, team="a"),
        binding("b", "viewer", {"user": "bob"}, {"user": "alice"}),
        binding("c", "admin", {"user": "platform"}, {"group": "alice"}),
    ]
    grants = SESSION.grants(bindings)
    assert str(grants) == "author for team=a; viewer"
    assert grants.allows(Verb.WRITE)
    assert not grants.is_admin, "a group is no user, and a user is no group"
    assert SESSION.grants([]).each == ()
