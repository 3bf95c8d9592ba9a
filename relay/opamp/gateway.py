"""The handshake of Bindplane's opampgateway, which asks whether an agent may connect and waits for the answer.

The gateway puts many agents on one connection. It asks with a custom message of its own, without an instance_uid.
"""

from __future__ import annotations

import json

from google.protobuf.message import DecodeError

from relay.pb.opamp.v1 import opamp_pb2 as pb

CAPABILITY = "com.bindplane.opamp-gateway"
_CONNECT, _RESULT = "connect", "connectResult"
_MARK = CAPABILITY.encode()


def answer(content: bytes) -> bytes | None:
    """Answer a message of the handshake; None for any other message.

    Args:
        content: a serialised AgentToServer, valid or not.

    Returns:
        A serialised ServerToAgent: the agent may connect, unless the request is malformed. The request's headers, which
        could authenticate the agent, are ignored.
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
    """The request_uid of a connect request; None if the request is malformed."""
    try:
        request = json.loads(data)
    except (ValueError, RecursionError):
        return None
    request_uid = request.get("request_uid") if isinstance(request, dict) else None
    return request_uid if isinstance(request_uid, str) else None
