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
        A serialised ServerToAgent: the agent may connect, unless nobody can read the question. What the gateway tells of
        its request's headers is for who authenticates agents.
    """
    if _MARK not in content:
        return None
    try:
        message = pb.AgentToServer.FromString(content)
    except DecodeError:
        return None
    custom = message.custom_message
    if custom.capability != CAPABILITY or custom.type != _CONNECT:
        return None
    request_uid = _request_uid(custom.data)
    result = {
        "request_uid": request_uid or "",
        "accept": request_uid is not None,
        "http_status_code": 200 if request_uid is not None else 400,
        "response_headers": {},
    }
    reply = pb.ServerToAgent(instance_uid=message.instance_uid)
    reply.custom_message.capability = CAPABILITY
    reply.custom_message.type = _RESULT
    reply.custom_message.data = json.dumps(result).encode()
    return reply.SerializeToString()


def _request_uid(data: bytes) -> str | None:
    """What a question is known by; None where it is none."""
    try:
        asked = json.loads(data)
    except (ValueError, RecursionError):
        return None
    found = asked.get("request_uid") if isinstance(asked, dict) else None
    return found if isinstance(found, str) else None
