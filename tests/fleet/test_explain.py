from relay.fleet.cohort import Cohorts
from relay.fleet.explain import explain_agent
from relay.opamp.offer import Failure
from relay.pb.opamp.v1 import opamp_pb2 as pb
from relay.pb.relay.v1 import link_pb2
from relay.policy.evaluate import Evaluator
from relay.policy.snapshot import build
from tests.fleet.agents import record
from tests.policy.filled import filled, package
from tests.policy.published import published, resources, revision


def test_decision_and_outcome() -> None:
    cohorts = Cohorts("eu", "all")
    cohorts.change(build(resources(published("a", stable=revision(1)))))
    agent = record("x", tier="prod")
    offer = cohorts.offer(agent)
    assert offer is not None
    agent.offer_config(offer.config_hash, offer.slots)
    agent.config.offered_at_ms = 1000
    agent.config.failures = (Failure("", b"old", 0, "no such receiver", 500),)

    def explained() -> dict[str, object]:
        state = link_pb2.AgentState.FromString(agent.state())
        return explain_agent(cohorts.evaluator, state, region="eu", trusted="all")

    found = explained()
    assert found["agent"] == "x"
    assert found["slots"][0]["config_hash"] == offer.config_hash.hex()  # type: ignore[index]
    assert found["attempts"] == [
        {
            "hash": b"old".hex(),
            "status": "FAILED",
            "error_message": "no such receiver",
            "at": "1970-01-01T00:00:00.500Z",
        },
        {"hash": offer.config_hash.hex(), "status": "OFFERED", "error_message": "", "at": "1970-01-01T00:00:01.000Z"},
    ]
    status = pb.RemoteConfigStatus(last_remote_config_hash=offer.config_hash, status=pb.RemoteConfigStatuses_APPLIED)
    agent.merge(pb.AgentToServer(instance_uid=agent.instance_uid, remote_config_status=status), full=False)
    assert explained()["attempts"][-1]["status"] == "APPLIED"  # type: ignore[index]


def test_agents_that_cannot_be_offered_anything() -> None:
    cohorts = Cohorts("eu", "all")
    state = link_pb2.AgentState(agent_id="x")
    notes = explain_agent(cohorts.evaluator, state, region="eu", trusted="all")["notes"]
    assert len(notes) == 2


def test_package_attempts() -> None:
    cohorts = Cohorts("eu", "all")
    cohorts.change(filled(package("agent", "1", ("1", {}))))
    agent = record("x")
    offer = cohorts.packages(agent)
    assert offer is not None
    agent.offer_packages(offer)
    state = link_pb2.AgentState.FromString(agent.state())
    found = explain_agent(cohorts.evaluator, state, region="eu", trusted="all")
    assert found["packages"]["assignment"] == "p"
    assert found["attempts"][-1]["hash"] == offer.hash.hex()
    assert found["attempts"][-1]["status"] == "OFFERED"
    assert found["notes"] == ["the agent does not accept packages: it is offered none"]


def test_note_about_several_configs_failing_with_one_message() -> None:
    evaluator = Evaluator(build(resources()))
    state = link_pb2.AgentState(agent_id="a", agent_description=b"", capabilities=2)
    for content, text in ((b"1", "same"), (b"2", "same"), (b"3", "other"), (b"4", ""), (b"5", "")):
        state.config.failed.add(content_hash=content, error_message=text)
    notes = explain_agent(evaluator, state, region="eu", trusted="all")["notes"]
    (hint,) = [note for note in notes if "validate_config" in note]
    assert hint.startswith("2 different contents failed with the same text: perhaps the agent repeats")


def test_agent_that_does_not_accept_packages() -> None:
    cohorts = Cohorts("eu", "all")
    cohorts.change(filled(package("agent", "1", ("1", {}))))
    state = link_pb2.AgentState.FromString(record("x").state())
    state.capabilities = 0x3
    notes = explain_agent(cohorts.evaluator, state, region="eu", trusted="all")["notes"]
    assert "the agent does not accept packages: it is offered none" in notes


def test_file_that_the_node_lacks() -> None:
    cohorts = Cohorts("eu", "all")
    cohorts.change(filled(package("agent", "1", ("1", {}))))
    agent = record("x")
    agent.merge(pb.AgentToServer(instance_uid=agent.instance_uid, capabilities=0x1803 | 0x18), full=False)
    state = link_pb2.AgentState.FromString(agent.state())
    withheld = {"1" * 64: "damaged upstream"}
    notes = explain_agent(cohorts.evaluator, state, region="eu", trusted="all", withheld=withheld)["notes"]
    assert "package agent 1 is not offered: damaged upstream" in notes
