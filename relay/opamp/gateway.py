"""The handshake of Bindplane's opampgateway: it asks whether an agent may connect, and waits for the answer.

It puts many agents on one connection, and asks by a custom message that has no instance_uid: it is the gateway's own.
"""

from __future__ import annotations

import json

from google.protobuf.message import DecodeError

from relay.pb.opamp.v1 import opamp_pb2 as pb

CAPABILITY = "com.bindplane.opamp-gateway"
_CONNECT, _RESULT = "connect", "connectResult"
_MARK = CAPABILITY.encode()


def answer(content: bytes) -> bytes | None:
    """Answer a message of this handshake; None for every other message.

    Args:
        content: a serialised AgentToServer, whatever is wrong with it.

    Returns:
        A serialised ServerToAgent: the agent may connect. What the gateway tells of its request's headers is for who
        authenticates agents.
    """
    if _MARK not in content:
        return None
    try:
        message = pb.AgentToServer.FromString(content)
        custom = message.custom_message
        if custom.capability != CAPABILITY or custom.type != _CONNECT:
            return None
        asked = json.loads(custom.data)
        request_uid = asked["request_uid"]
    except (DecodeError, ValueError, RecursionError, TypeError, KeyError):
        return None
    result = {"request_uid": request_uid, "accept": True, "http_status_code": 200, "response_headers": {}}
    reply = pb.ServerToAgent(instance_uid=message.instance_uid)
    reply.custom_message.capability = CAPABILITY
    reply.custom_message.type = _RESULT
    reply.custom_message.data = json.dumps(result).encode()
    return reply.SerializeToString()
