from relay.control.fleet.nodes import NodeState, plain_reason


def test_a_policy_that_is_refused_as_a_whole_is_among_the_refusals() -> None:
    node = NodeState("eu", "one", rejected=[{"name": "a", "digest": "", "reason": "no"}])
    assert [r["name"] for r in node.refusals] == ["a"]
    assert (node.key, node.connected) == ("eu/one", False)


def test_a_node_of_the_first_version_is_too_old_in_one_line() -> None:
    said = "1 validation error for Published\nearlier\n  Extra inputs are not permitted [type=extra_forbidden]"
    words = "has earlier, which this node is too old to understand: upgrade it"
    assert [plain_reason(text) for text in (said, said.replace("\n", "; "))] == [words, words]
    assert plain_reason("foo: t@v1 requires a value for foo") == "foo: t@v1 requires a value for foo"
