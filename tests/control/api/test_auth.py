from __future__ import annotations

from tests.conftest import TEMPLATE, Programs, assignment
from tests.control.api.client import body
from tests.control.api.people import guarded, person

THEIRS = assignment("theirs", selector="{labels: {team: b}}")
OURS = assignment("ours", selector="{labels: {team: a}}", slot="x")


async def test_whoami_and_can_i(programs: Programs) -> None:
    plane, client = await guarded(programs)
    admin, ann = await person(plane, client, "admin"), await person(plane, client, "author", "ann", team="a")
    await admin.call("POST", "apply", json=body(TEMPLATE, THEIRS, OURS))
    _, who = await ann.call("GET", "auth/whoami")
    assert (who["user"], who["role"], who["scope"]) == ("ann", "author", {"team": "a"})
    assert who["expires"] > "2026"
    for query, is_allowed, reason in (
        ("verb=write", True, ""),
        ("verb=approve", False, "the role author may not do this: it needs the verb approve"),
        ("verb=write&kind=ConfigAssignment&name=ours", True, ""),
        (
            "verb=write&kind=ConfigAssignment&name=theirs",
            False,
            "assignment theirs is for agents outside the scope team=a",
        ),
        ("verb=write&kind=RoleBinding&name=new", False, "RoleBinding/new: the role author may not change this"),
        ("verb=write&kind=RegionVariables&name=us", False, "RegionVariables/us is outside the scope team=a"),
        ("verb=write&kind=ConfigAssignment&name=new", True, ""),
    ):
        _, answer = await ann.call("GET", f"auth/can-i?{query}")
        assert answer["allowed"] is is_allowed
        assert answer["reason"].startswith(reason)
    assert await ann.status("GET", "auth/can-i?verb=fly") == 422
    assert await ann.status("GET", "auth/can-i?verb=read&kind=Planet") == 422
    scoped = await person(plane, client, "admin", "root", team="a")
    assert (await scoped.call("GET", "auth/can-i?verb=admin"))[1]["allowed"] is False, "as the routes say"


async def test_attack_a_person_beyond_the_role(programs: Programs) -> None:
    plane, client = await guarded(programs)
    people = {role: await person(plane, client, role) for role in ("viewer", "author", "approver", "operator", "admin")}
    requests = {
        ("POST", "apply"): ({"author", "admin"}, body(TEMPLATE)),
        ("POST", "rollouts/x-1/approve"): ({"approver", "admin"}, {"digest": "0" * 8}),
        ("POST", "rollouts/x-1/reject"): ({"approver", "admin"}, {}),
        ("POST", "rollouts/x-1/pause"): ({"operator", "admin"}, {}),
        ("POST", "packages/a/1/yank"): ({"operator", "admin"}, {}),
        ("DELETE", "nodes/eu/one"): ({"operator", "admin"}, None),
        ("POST", "keys"): ({"operator", "admin"}, {"agent": "x"}),
        ("POST", "revocations"): ({"operator", "admin"}, {"kind": "jti", "value": "1", "reason": "x"}),
        ("POST", "epoch"): ({"admin"}, {"reason": "x"}),
        ("GET", f"blobs/{'0' * 64}"): ({"author", "admin"}, None),
        ("GET", "documents/templates?reveal=true"): ({"author", "admin"}, None),
    }
    for (method, path), (may, content) in requests.items():
        for role, somebody in people.items():
            status = await somebody.status(method, path, **({"json": content} if content is not None else {}))
            assert (status != 403) is (role in may), (method, path, role, status)


async def test_attack_a_person_beyond_the_scope(programs: Programs) -> None:
    plane, client = await guarded(programs)
    admin, ann = await person(plane, client, "admin"), await person(plane, client, "author", "ann", team="a")
    await admin.call("POST", "apply", json=body(TEMPLATE, THEIRS))
    for text in (
        THEIRS.replace("rate: 1", "rate: 2"),
        assignment("theirs", selector="{labels: {team: a}}"),
        assignment("new", selector="{}", slot="y"),
        assignment("new", selector="{labels: {team: b}}", slot="y") + "  unknown: 1\n",
    ):
        status, answer = await ann.call("POST", "apply", json=body(text))
        assert status in (403, 422), answer
        assert status == 403 or "unknown" in str(answer)
    assert await ann.status("DELETE", "documents/assignments/theirs") == 403
    assert await ann.status("POST", "apply", json=body(THEIRS)) == 200, "an unchanged document needs nothing"
    assert await ann.status("POST", "apply", json=body(OURS)) == 200
    assert plane.ledger.state.catalog.assignments.keys() == {"theirs", "ours"}


async def test_secrets_are_masked_unless_revealed(programs: Programs) -> None:
    plane, client = await guarded(programs)
    author, viewer = await person(plane, client, "author"), await person(plane, client, "viewer")
    secret = TEMPLATE.replace("basic", "secret").replace(
        'rate: "{{.rate}}"', 'rate: "{{.rate}}"\n    password: hunter2'
    )
    assert await author.status("POST", "apply", json=body(secret)) == 200
    path = "documents/templates/secret@v1"
    for somebody in (author, viewer):
        assert (await somebody.call("GET", path))[1]["spec"]["config"]["password"] == "[secret 1]"
        assert (await somebody.call("GET", "documents/templates"))[1][0]["spec"]["config"]["password"] == "[secret 1]"
        assert "hunter2" not in str((await somebody.call("GET", f"{path}/versions/1"))[1])
    assert (await author.call("GET", f"{path}?reveal=true"))[1]["spec"]["config"]["password"] == "hunter2"
    assert await viewer.status("GET", f"{path}?reveal=true") == 403
    status, answer = await author.call("POST", "apply", json=body(secret.replace("hunter2", '"[secret 1]"')))
    assert status == 422
    assert "is a masked secret" in str(answer)
