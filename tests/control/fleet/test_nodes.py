from relay.control.fleet.nodes import NodeState, plain_reason


def test_wholly_refused_policy_is_among_the_refusals() -> None:
    node = NodeState("eu", "one", rejected=[{"name": "a", "digest": "", "reason": "no"}])
    assert [r["name"] for r in node.refusals] == ["a"]
    assert (node.key, node.connected) == ("eu/one", False)


def test_first_version_node_is_reported_as_too_old() -> None:
    said = "1 validation error for Published\nearlier\n  Extra inputs are not permitted [type=extra_forbidden]"
    words = "has earlier, which this node is too old to understand: upgrade it"
    assert [plain_reason(text) for text in (said, said.replace("\n", "; "))] == [words, words]
    assert plain_reason("foo: t@v1 requires a value for foo") == "foo: t@v1 requires a value for foo"
