"""The resources of a region, derived from a state."""

import dataclasses

from relay.auth.revocations import Kind
from relay.control.access.keys import ApiKeys
from relay.control.access.revocations import Revocation
from relay.control.ledger.state import State
from relay.control.regions.resources import AccessResources, declared_policy, files_for, resources
from relay.policy.access import Access, read_access
from relay.policy.snapshot import build
from tests.conftest import TEMPLATE, assignment
from tests.control.access.test_keys import ONE
from tests.control.access.test_tokens import TOKEN
from tests.control.ledger.made import ONE_AGENT, applied, terms, with_package
from tests.control.texts import TWO_STAGES, staged, variables
from tests.packages import package_assignment

BASE = applied(State(), TEMPLATE, TWO_STAGES)
KEY = [b"1" * 32]
FILE = "1" * 64


def kinds(held: dict[str, bytes]) -> set[str]:
    return {name.partition("/")[0] for name in held}


def test_region_gets_only_relevant_resources() -> None:
    state = applied(BASE, assignment("a", selector="{labels: {region: us}}"), variables("eu", "{level: warn}"))
    assert resources(state, "eu", KEY, AccessResources()) == {}
    assert kinds(resources(state, "us", KEY, AccessResources())) == {"ConfigAssignment", "ConfigTemplate"}
    everywhere = applied(BASE, assignment("a"), variables("eu", "{level: warn}"))
    assert kinds(resources(everywhere, "eu", KEY, AccessResources())) == {
        "ConfigAssignment",
        "ConfigTemplate",
        "RegionVariables",
    }
    assert kinds(resources(everywhere, "us", KEY, AccessResources())) == {"ConfigAssignment", "ConfigTemplate"}


def test_resources_compile() -> None:
    state = applied(applied(BASE, assignment("a")), staged(2), on=terms(ONE_AGENT))
    snapshot = build(resources(state, "eu", KEY, AccessResources()))
    assert snapshot.rejected == {}
    ((change, _),) = snapshot.assignments[0].branches
    assert change.id == "a-2"


def test_aimed_policy_is_the_declared_one() -> None:
    state = applied(applied(BASE, assignment("a")), staged(2), on=terms(ONE_AGENT))
    (compiled,) = build(declared_policy(state, "eu")).assignments
    assert (len(compiled.branches), compiled.published.rollout) == (0, None)
    watching = applied(BASE, assignment("a") + "  observe_only: true\n")
    assert declared_policy(watching, "eu") == {}


def test_packages_include_key_and_prefetches() -> None:
    state = applied(with_package(BASE), package_assignment())
    held = resources(state, "eu", KEY, AccessResources())
    assert kinds(held) == {"PackageAssignment", "Package", "Keys", "Yanked", "Prefetch"}
    assert build(held).prefetch == set()
    assert files_for(state, "eu") == {FILE: 3}
    waits = applied(with_package(BASE), package_assignment(strategy="canary", prefetch="true"), on=terms(ONE_AGENT))
    assert build(resources(waits, "eu", KEY, AccessResources())).prefetch == {FILE}
    wanted = dataclasses.replace(with_package(BASE), prefetches={"eu": frozenset({FILE, "2" * 64})})
    assert files_for(wanted, "eu") == {FILE: 3}, "what is gone is not named"
    assert build(resources(wanted, "eu", KEY, AccessResources())).prefetch == {FILE}
    assert resources(wanted, "us", KEY, AccessResources()) == {}


def test_yanked_packages_are_listed_and_have_no_files() -> None:
    state = with_package(applied(with_package(BASE), package_assignment()), yanked="crashes")
    assert files_for(state, "eu") == {}
    assert build(resources(state, "eu", KEY, AccessResources())).yanked == {"otelcol@1"}


def test_who_may_connect() -> None:
    access = AccessResources()
    revoked = Revocation(Kind.SUBJECT, "web", "x", "ann", 1)
    reader = dataclasses.replace(TOKEN, on_nodes=True)
    state = State(
        api_keys=ApiKeys().put([ONE]),
        revocations={revoked.id: revoked},
        tokens={reader.id: reader, "other": dataclasses.replace(TOKEN, digest=b"o" * 32, on_nodes=False)},
    )
    held = access.of(state, "eu")
    assert set(held) == {"ApiKeys/aa", "Revocations/agents", "Access/readers"}
    read, rejected = read_access(held, Access())
    assert not rejected
    assert read.revoked == {("subject", "web")}
    assert set(read.readers) == {reader.digest}
    again = access.of(state, "us")
    assert all(again[name] is payload for name, payload in held.items()), "nothing is made twice"
    assert access.of(State(), "eu") == {}
