from relay.fleet.facts import facts_of, labels_of
from tests.fleet.agents import record


def test_labels_are_trusted_attributes_and_the_node_region() -> None:
    attributes = {"tier": "prod", "region": "claimed", "list": [1]}
    assert labels_of(attributes, "eu", "all") == {"tier": "prod", "region": "eu"}
    assert labels_of(attributes, "eu", ("tier", "list", "absent")) == {"tier": "prod", "region": "eu"}
    assert labels_of(attributes, "eu", ()) == {"region": "eu"}


def test_facts_contain_labels_and_attributes() -> None:
    facts = facts_of(record("a", tier="x").agent_description, "a", "eu", ())
    assert (facts.agent_id, facts.labels["region"], facts.attributes["tier"]) == ("a", "eu", "x")
