from relay.policy import kinds


def test_every_kind_has_several_names() -> None:
    assert set(kinds.BY_PLURAL) == {
        "templates", "assignments", "regionvariables", "strategies", "packageassignments", "signingkeys", "rolebindings"
    }  # fmt: skip
    words = [word for kind in kinds.KINDS.values() for word in kind.words]
    assert len(words) == len(set(words)), "no word is of two kinds"
    assert kinds.BY_WORD["variables"].name == "RegionVariables"
    assert [name for name, kind in kinds.KINDS.items() if kind.is_assignment] == [
        "ConfigAssignment",
        "PackageAssignment",
    ]
