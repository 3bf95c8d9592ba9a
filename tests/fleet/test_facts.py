from relay.fleet.facts import NO_PROOF, Proof, facts_of, labels_of
from relay.opamp.record import Credential
from relay.pb.relay.v1 import link_pb2
from tests.fleet.agents import record


def test_labels_are_trusted_attributes_and_the_node_region() -> None:
    attributes = {"tier": "prod", "region": "claimed", "list": [1]}
    assert labels_of(attributes, "eu", "all") == {"tier": "prod", "region": "eu"}
    assert labels_of(attributes, "eu", ("tier", "list", "absent")) == {"tier": "prod", "region": "eu"}
    assert labels_of(attributes, "eu", ()) == {"region": "eu"}


def test_facts_contain_labels_and_attributes() -> None:
    facts = facts_of(record("a", tier="x").agent_description, "a", "eu", ())
    assert (facts.agent_id, facts.labels["region"], facts.attributes["tier"]) == ("a", "eu", "x")


def test_labels_of_a_credential_win_over_attributes_but_not_over_the_region() -> None:
    proof = Proof(True, True, '{"tier":"lead","region":"us"}')
    assert labels_of({"tier": "prod", "os": "linux"}, "eu", ("tier", "os"), proof) == {
        "tier": "lead",
        "os": "linux",
        "region": "eu",
    }


def test_agent_ids_count_if_proved_or_trusted() -> None:
    shared, own = Proof(is_required=True), Proof(is_required=True, agent_id=True)
    assert NO_PROOF.id_counts(())
    assert own.id_counts(())
    assert not shared.id_counts(("tier",))
    assert shared.id_counts("all")
    assert shared.id_counts(("service.instance.id",))


def test_proof_of_a_record_and_of_its_state() -> None:
    agent = record("a")
    assert Proof.of_record(agent) == NO_PROOF == Proof.of(link_pb2.AgentState.FromString(agent.state()))
    for credential in (Credential("s", "a", "jwt", "", "{}", 0), Credential("s", "", "jwt", "", "", 0)):
        agent.adopt(credential)
        expected = Proof(True, bool(credential.agent_id), credential.labels)
        assert Proof.of_record(agent) == expected == Proof.of(link_pb2.AgentState.FromString(agent.state()))
