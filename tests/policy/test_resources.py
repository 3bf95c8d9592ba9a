from __future__ import annotations

import json

import pytest

from relay.policy.published import CONFIG, PACKAGES
from relay.policy.resources import (
    Resource,
    assignment_resource,
    is_assignment,
    is_named_for,
    keys_resource,
    package_resource,
    prefetch_resource,
    split,
    template_resource,
    variables_resource,
    yanked_resource,
)
from tests.policy.filled import package
from tests.policy.published import TEMPLATE, VARIABLES, published, revision


def test_resource_names_are_unique() -> None:
    assert template_resource(TEMPLATE)[0] == "ConfigTemplate/t@v1"
    assert variables_resource(VARIABLES)[0].startswith("RegionVariables/local@")
    pin = package("otelcol", "1", ("1", {})).pin
    assert package_resource(package("otelcol", "1", ("1", {})))[0] == f"Package/{pin}"
    assert yanked_resource(["b@1", "a@1", "b@1"]) == ("Yanked/packages", b'{"versions":["a@1","b@1"]}')
    name, payload = keys_resource([bytes(32)], {"k": "pem"})
    assert (name, json.loads(payload)) == ("Keys/packages", {"download": ["00" * 32], "signing": {"k": "pem"}})
    assert prefetch_resource(["2" * 64, "1" * 64])[0] == "Prefetch/packages"


def test_name_is_kind_and_key() -> None:
    assert split("ConfigTemplate/t@v1") == (Resource.TEMPLATE, "t@v1")
    assert split("OfALaterVersion/x/y") == ("OfALaterVersion", "x/y")
    assert Resource(CONFIG).name_of("a") == "ConfigAssignment/a"
    assert [is_assignment(Resource(kind).name_of("a")) for kind in (CONFIG, PACKAGES, "Package")] == [True, True, False]


def test_region_variables_are_named_by_content() -> None:
    name, payload = variables_resource(VARIABLES)
    assert is_named_for(name, payload)
    assert not is_named_for(name, payload + b" ")
    assert is_named_for("ConfigTemplate/t@v1", b"anything")


@pytest.mark.parametrize(("earlier", "is_told"), [([], False), ([revision(1)], True)])
def test_old_nodes_get_no_earlier_revisions(earlier: list[object], is_told: bool) -> None:
    made = published("a", stable=revision(2)).model_copy(update={"earlier": earlier})
    assert ("earlier" in json.loads(assignment_resource(CONFIG, made)[1])) is is_told


def test_text_template_payload_has_no_config() -> None:
    text = TEMPLATE.model_copy(update={"spec": TEMPLATE.spec.model_copy(update={"config": None, "text": "x"})})
    assert "config" not in json.loads(template_resource(text)[1])["spec"]
    assert "text" not in json.loads(template_resource(TEMPLATE)[1])["spec"]
