from __future__ import annotations

import pytest

from relay.control.fleet.agents import Agent, NodeState, plain_reason, read_agent
from relay.policy.published import CONFIG, PACKAGES
from tests.fleet.agents import record


def test_a_state_is_taken_apart() -> None:
    made = record("a", healthy=False)
    agent = read_agent(made.instance_uid, made.state(), NodeState("eu", "one"))
    assert (agent.agent_id, agent.node, agent.healthy) == ("a", "eu/one", False)
    assert agent.accepts(CONFIG)
    assert not agent.accepts(PACKAGES)
    assert agent.reports(CONFIG)
    assert agent.offering(PACKAGES).hash == b""


@pytest.mark.parametrize("field", ["agent_description", "health", "remote_config_status", "custom_capabilities"])
def test_what_cannot_be_read_is_refused(field: str) -> None:
    made = record("a")
    setattr(made, field, b"\x0a\xff")
    with pytest.raises(ValueError, match="cannot be read"):
        read_agent(made.instance_uid, made.state(), NodeState("eu", "one"))
    with pytest.raises(ValueError, match="belongs to another agent"):
        read_agent(b"x" * 16, record("a").state(), NodeState("eu", "one"))


def test_a_policy_that_is_refused_as_a_whole_is_among_the_refusals() -> None:
    node = NodeState("eu", "one", rejected=[{"name": "a", "digest": "", "reason": "no"}])
    assert [r["name"] for r in node.refusals] == ["a"]
    assert not node.connected
    assert isinstance(Agent(b"", "a", "eu/one", True, 0, b"", 0, b"").config.hash, bytes)


def test_what_makes_an_agent_another_one() -> None:
    def read(**more: bool) -> Agent:
        made = record("a", **more)  # type: ignore[arg-type]
        return read_agent(made.instance_uid, made.state(), NodeState("eu", "one"))

    agent = read()
    assert agent.is_like(read(healthy=False)), "nothing that selectors or capabilities tell"
    assert not agent.is_like(read(accepts=False))
    agent.facts = None
    assert not agent.is_like(read()), "it may have been"


def test_a_node_of_the_first_version_is_too_old_in_one_line() -> None:
    said = "1 validation error for Published\nearlier\n  Extra inputs are not permitted [type=extra_forbidden]"
    words = "has earlier, which this node is too old to understand: upgrade it"
    assert [plain_reason(text) for text in (said, said.replace("\n", "; "))] == [words, words]
    assert plain_reason("foo: t@v1 requires a value for foo") == "foo: t@v1 requires a value for foo"
