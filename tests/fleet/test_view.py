from typing import Literal

from relay.fleet.facts import facts_of
from relay.fleet.rollup import Rollup
from relay.fleet.view import agent_view, rfc3339
from relay.opamp.offer import OfferedSlot, WithheldSlot
from relay.opamp.record import Credential
from relay.pb.opamp.v1 import opamp_pb2 as pb
from relay.pb.relay.v1 import link_pb2
from relay.policy.selector import Facts
from tests.fleet.agents import record


def facts(state: link_pb2.AgentState, trusted: Literal["all"] | tuple[str, ...] = "all") -> Facts:
    return facts_of(state.agent_description, state.agent_id, "eu", trusted)


def test_view_of_an_agent() -> None:
    agent = record("a1", tier="prod")
    agent.offer_config(b"", (OfferedSlot("", "p", b"c"),))
    state = link_pb2.AgentState.FromString(agent.state())
    view = agent_view(state, facts(state, ("tier",)), region="eu", node="n1", connected=True)
    assert view["agent_id"] == "a1"
    assert view["labels"] == {"tier": "prod", "region": "eu"}
    assert view["attributes"] == {"tier": "prod", "service.instance.id": "a1"}
    assert view["capabilities"] == ["ReportsStatus", "AcceptsRemoteConfig", "ReportsHealth", "ReportsRemoteConfig"]
    assert view["healthy"] is True
    assert view["config"] == {
        "offered_hash": "", "reported_hash": "", "status": "UNSET", "error_message": "", "assignments": ["p"]
    }  # fmt: skip
    assert view["first_seen"] == "1970-01-01T00:00:00.000Z"


def test_failed_agent_shows_failed_while_running_its_old_config() -> None:
    agent = record("a1")
    agent.offer_config(b"2" * 32, (OfferedSlot("", "p", b"new"),))
    failed = pb.RemoteConfigStatus(
        last_remote_config_hash=b"2" * 32, status=pb.RemoteConfigStatuses_FAILED, error_message="no such receiver"
    )
    agent.merge(pb.AgentToServer(remote_config_status=failed), full=False)
    agent.config.withheld = (WithheldSlot("", "p", b"new", ""),)
    agent.offer_config(b"1" * 32, (OfferedSlot("", "p", b"old"),))
    applied = pb.RemoteConfigStatus(last_remote_config_hash=b"1" * 32, status=pb.RemoteConfigStatuses_APPLIED)
    agent.merge(pb.AgentToServer(remote_config_status=applied), full=False)
    state = link_pb2.AgentState.FromString(agent.state())
    view = agent_view(state, facts(state), region="eu", node="n1", connected=True)
    config = view["config"]
    assert (config["status"], config["error_message"]) == ("FAILED", "no such receiver")
    assert (config["assignments"], config["offered_hash"]) == (["p"], "31" * 32)
    (withheld,) = view["withheld"]
    assert (withheld["kind"], withheld["assignment"]) == ("ConfigAssignment", "p")
    assert (withheld["content_hash"], withheld["reason"]) == (b"new".hex(), "the agent failed to apply it")
    rollup = Rollup()
    agent.connected = True
    rollup.count(agent)
    assert dict(rollup.message().config_status) == {"FAILED": 1}
    agent.config.withheld = ()
    rollup.count(agent)
    assert dict(rollup.message().config_status) == {"FAILED": 0, "APPLIED": 1}


def test_unknown_values_are_null() -> None:
    state = link_pb2.AgentState(instance_uid=bytes(16))
    view = agent_view(state, facts(state), region="eu", node="n", connected=None)
    assert (view["connected"], view["healthy"]) == (None, None)
    assert view["agent_id"] == "00000000-0000-0000-0000-000000000000"


def test_only_requested_fields() -> None:
    state = link_pb2.AgentState.FromString(record("a1").state())
    view = agent_view(state, facts(state), region="eu", node="n", connected=True, fields=frozenset({"node", "labels"}))
    assert view == {"node": "n", "labels": {"service.instance.id": "a1", "region": "eu"}}


def test_times_are_utc_with_milliseconds() -> None:
    assert rfc3339(1_760_000_000_123) == "2025-10-09T08:53:20.123Z"


def test_package_states() -> None:
    said = pb.PackageStatuses(server_provided_all_packages_hash=b"h")
    said.packages["p"].agent_has_version = "1.2"
    said.packages["q"].server_offered_version = "2"
    state = link_pb2.AgentState.FromString(record("a1").state())
    view = agent_view(state, facts(state), region="eu", node="n", connected=True)
    assert view["packages"] == {
        "offered_hash": "", "status": "", "error_message": "", "assignments": [], "installed": {}
    }  # fmt: skip
    state.package_statuses = said.SerializeToString()
    state.packages.hash, state.packages.status, state.packages.reason = b"h", "FAILED", "q: no"
    state.packages.slots.add(assignment="tools", content_hash=b"c")
    view = agent_view(state, facts(state), region="eu", node="n", connected=True)
    assert view["packages"] == {
        "offered_hash": b"h".hex(), "status": "FAILED", "error_message": "q: no", "assignments": ["tools"],
        "installed": {"p": "1.2"},
    }  # fmt: skip


def test_view_of_a_credential() -> None:
    agent = record("a1")
    shown = []
    for credential in (None, Credential("s", "", "jwt", "t-1", "", 0), Credential("s", "a1", "mtls", "abc", "", 1000)):
        agent.adopt(credential)
        state = link_pb2.AgentState.FromString(agent.state())
        view = agent_view(state, facts(state), region="eu", node="n", connected=True, fields=frozenset({"auth"}))
        shown.append(view["auth"])
    assert shown == [
        {"method": "none", "subject": "", "credential": "", "expires": None},
        {"method": "jwt", "subject": "s", "credential": "t-1", "expires": None},
        {"method": "mtls", "subject": "s", "credential": "abc", "expires": "1970-01-01T00:00:01.000Z"},
    ]
