from __future__ import annotations

from typing import Any

from relay.ids import InstanceUid
from relay.node.live import Live
from relay.opamp.contest import Speaker
from relay.opamp.record import Record
from relay.pb.opamp.v1 import opamp_pb2 as pb
from relay.transport.ports import Caller


class Talk:
    """A session reduced to its record."""

    def __init__(self) -> None:
        self.record = Record(InstanceUid(bytes(16)), 0)


def live() -> Live:
    session: Any = Talk()
    connection: Any = None
    return Live(session, connection, Caller("127.0.0.1:1"))


def test_hundred_good_messages_offset_a_bad_one() -> None:
    agent = live()
    record = agent.session.record
    assert [agent.misbehaved() for _ in range(3)] == [1, 2, 3]
    record.sequence_num += 199
    assert agent.misbehaved() == 3, "one is forgiven"
    record.sequence_num += 1000
    assert agent.misbehaved() == 1
    record.sequence_num = 0
    assert agent.misbehaved() == 2, "a sequence that begins anew forgives nothing"


def test_poll_interval_rises_at_once_and_falls_slowly() -> None:
    agent = live()
    agent.polled(0.0, 10.0)
    assert agent.interval_s == 0
    agent.polled(10.0, 40.0)
    agent.polled(40.0, 42.0)
    assert agent.interval_s == 15


def test_speaker_is_instance_id_and_sequence() -> None:
    agent = live()
    description = pb.AgentDescription()
    description.identifying_attributes.add(key="service.instance.id").value.string_value = "a"
    agent.session.record.agent_description = description.SerializeToString()
    agent.session.record.sequence_num = 7
    assert agent.speaker == Speaker("a", 7)
