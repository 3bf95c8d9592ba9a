"""Helpers for tests: records."""

from __future__ import annotations

from relay.ids import InstanceUid
from relay.opamp.record import Record
from relay.pb.opamp.v1 import opamp_pb2 as pb


def record(name: str = "a", *, healthy: bool | None = True, accepts: bool = True, **attributes: str) -> Record:
    made = Record(InstanceUid(name.encode().ljust(16, b"\0")), 0)
    message = pb.AgentToServer(instance_uid=made.instance_uid, capabilities=0x1803 if accepts else 0x1)
    message.agent_description.identifying_attributes.add(key="service.instance.id").value.string_value = name
    for key, value in attributes.items():
        name = key.replace("__", ".")
        message.agent_description.non_identifying_attributes.add(key=name).value.string_value = value
    if healthy is not None:
        message.health.healthy = healthy
    made.merge(message, full=True)
    made.connected, made.transport = True, "websocket"
    return made
