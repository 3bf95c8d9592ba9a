from hypothesis import given
from hypothesis import strategies as st

from relay.fleet.rollup import Rollup, status_name
from relay.pb.opamp.v1 import opamp_pb2 as pb
from tests.fleet.agents import record


def test_sums_follow_agents() -> None:
    rollup = Rollup()
    one, two, three = record("1"), record("2", healthy=False), record("3", healthy=None)
    for agent in (one, two, three):
        assert rollup.count(agent)
        assert not rollup.count(agent)
    status = pb.RemoteConfigStatus(status=pb.RemoteConfigStatuses_APPLIED)
    one.remote_config_status = status.SerializeToString()
    assert rollup.count(one)
    three.connected = False
    rollup.count(three)
    message = rollup.message()
    assert (message.agents, message.connected, message.healthy, message.unhealthy) == (3, 2, 1, 1)
    assert dict(message.config_status) == {"APPLIED": 1, "UNSET": 1}
    assert dict(message.by_transport) == {"websocket": 2}
    assert rollup.connected == 2
    rollup.forget(one)
    rollup.forget(one)
    assert rollup.message().agents == 2


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.sampled_from([True, False, None])), max_size=30))
def test_sums_equal_a_recount_after_any_changes(changes: list[tuple[int, bool, bool | None]]) -> None:
    rollup = Rollup()
    agents = [record(str(i)) for i in range(4)]
    for index, connected, healthy in changes:
        agent = agents[index]
        agent.connected = connected
        agent.health = None if healthy is None else pb.ComponentHealth(healthy=healthy).SerializeToString()
        rollup.count(agent)
    counted = [a for a in agents if a.counted is not None]
    message = rollup.message()
    assert message.agents == len(counted)
    assert message.connected == sum(a.connected for a in counted)
    assert message.unhealthy == sum(a.connected and a.healthy() is False for a in counted)


def test_unknown_status_counts_as_unset() -> None:
    assert status_name(99) == "UNSET"
