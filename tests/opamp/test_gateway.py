from __future__ import annotations

import json

import pytest

from relay.opamp import gateway
from relay.pb.opamp.v1 import opamp_pb2 as pb


def asked(data: bytes, kind: str = "connect", capability: str = gateway.CAPABILITY, uid: bytes = b"") -> bytes:
    custom = pb.CustomMessage(capability=capability, type=kind, data=data)
    return pb.AgentToServer(instance_uid=uid, custom_message=custom).SerializeToString()


@pytest.mark.parametrize("uid", [b"", b"u" * 16])
def test_gateway_agent_may_connect(uid: bytes) -> None:
    data = json.dumps(
        {"request_uid": "r-1", "remote_address": "1.2.3.4:5", "headers": {"Authorization": ["x"]}}
    ).encode()
    reply = gateway.answer(asked(data, uid=uid))
    assert reply is not None
    message = pb.ServerToAgent.FromString(reply)
    assert message.instance_uid == uid
    assert (message.custom_message.capability, message.custom_message.type) == (gateway.CAPABILITY, "connectResult")
    assert json.loads(message.custom_message.data) == {
        "request_uid": "r-1", "accept": True, "http_status_code": 200, "response_headers": {}
    }  # fmt: skip


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x0a\x10" + b"u" * 16,
        gateway.CAPABILITY.encode(),
        asked(b'{"request_uid": 1}', kind="other"),
        asked(b'{"request_uid": 1}', capability=gateway.CAPABILITY + ".next"),
    ],
)
def test_other_messages_are_ignored(content: bytes) -> None:
    assert gateway.answer(content) is None


@pytest.mark.parametrize("data", [b"{}", b"[]", b"\xff", b"[" * 100_000, b'{"request_uid": 1}'])
def test_unreadable_question_is_answered_with_no(data: bytes) -> None:
    reply = gateway.answer(asked(data))
    assert reply is not None
    result = json.loads(pb.ServerToAgent.FromString(reply).custom_message.data)
    assert result == {"request_uid": "", "accept": False, "http_status_code": 400, "response_headers": {}}
