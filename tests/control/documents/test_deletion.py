"""Obstacles to a deletion."""

from __future__ import annotations

import json

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from relay.control.app import ControlPlane
from relay.control.documents.checks import Checks
from relay.control.documents.deletion import obstacles
from relay.control.ledger.state import State
from relay.errors import NotFound, Refused
from tests.conftest import TEMPLATE, assignment
from tests.control.documents.applying import actions
from tests.control.documents.known import Known
from tests.control.ledger.made import NEEDS, applied, documents
from tests.control.texts import IN_USE, TWO_STAGES, TYPED, staged, typed, variables

CHECKS = Checks(known=Known())


def reasons(state: State, kind: str, key: str) -> list[str]:
    return [problem.reason for problem in obstacles(state, state.catalog.of(kind)[key], CHECKS)]


def test_documents_in_use_cannot_be_deleted() -> None:
    state = applied(State(), TEMPLATE, TWO_STAGES, staged(1))
    assert reasons(state, "ConfigTemplate", "basic@v1") == ["in use by ConfigAssignment a"]
    assert reasons(state, "RolloutStrategy", "canary") == ["in use by ConfigAssignment a"]
    assert reasons(state, "ConfigAssignment", "a") == []
    free = applied(State(), TEMPLATE, TWO_STAGES)
    assert reasons(free, "ConfigTemplate", "basic@v1") == reasons(free, "RolloutStrategy", "canary") == []


def test_variables_in_use_cannot_be_deleted() -> None:
    state = applied(State(), TYPED, variables("eu", "{where: here}"), variables("us", "{where: there}"), typed("a"))
    assert reasons(state, "RegionVariables", "eu") == [
        "ConfigAssignment a: typed@v1 requires a value for where in region eu"
    ]
    assert reasons(state, "RegionVariables", "us") == [], "nobody is there"


def test_assignment_that_needs_approval_cannot_be_deleted() -> None:
    state = applied(applied(State(), TEMPLATE, assignment("a")), assignment("a") + NEEDS)
    state = applied(state, assignment("a", rate=2) + NEEDS)
    (reason,) = reasons(state, "ConfigAssignment", "a")
    assert "first get a change approved that removes it from all agents" in reason


def test_unused_documents_can_be_deleted() -> None:
    pem = Ed25519PrivateKey.generate().public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    document = {"apiVersion": "opamp.io/v1", "kind": "PackageSigningKey", "metadata": {"name": "release"}}
    (key,) = documents(json.dumps({**document, "spec": {"public_key": pem.decode()}}))
    assert obstacles(State(), key, CHECKS) == []


async def test_deletion_of_documents_in_use_is_refused(plane: ControlPlane) -> None:
    await actions(plane, *IN_USE)
    for kind, key in (("ConfigTemplate", "basic@v1"), ("RegionVariables", "eu")):
        with pytest.raises(Refused):
            await plane.documents.delete(kind, key)
    assert (await plane.documents.delete("ConfigAssignment", "a")).action == "deleted"
    await plane.documents.delete("ConfigTemplate", "basic@v1")
    for kind in ("ConfigTemplate", "Nonsense"):
        with pytest.raises(NotFound):
            await plane.documents.delete(kind, "basic@v1")
        with pytest.raises(NotFound):
            plane.documents.get(kind, "basic@v1")
