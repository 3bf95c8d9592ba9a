from __future__ import annotations

import pytest
from pydantic import ValidationError

from relay.policy.published import PackageRevision, Published
from tests.policy.published import published, revision


def test_revision_kind_is_determined_by_its_fields() -> None:
    packages = PackageRevision(packages=["otelcol@1@00"])
    for one in (
        published("a", stable=revision(1), candidate=revision(2)),
        Published(name="p", stable=packages, rollout=None),
    ):
        assert Published.model_validate_json(one.model_dump_json()) == one
    assert packages.slot == ""
    with pytest.raises(ValidationError, match="template"):
        Published.model_validate({"name": "a", "stable": {"values": {}}, "rollout": None})


def test_revisions_are_newest_first() -> None:
    layers = published("a", candidate=revision(3)).rollout
    assert layers is not None
    made = published("a", stable=revision(1), candidate=revision(4)).model_copy(
        update={"layers": [layers], "earlier": [revision(0)]}
    )
    assert [one.values["rate"] for one in made.revisions if not isinstance(one, PackageRevision)] == [4, 3, 1, 0]
    assert Published(name="a", stable=None, rollout=None).revisions == []
