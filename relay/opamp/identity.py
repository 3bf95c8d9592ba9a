"""An agent's identity: its attributes and its agent id (spec: AgentDescription)."""

from __future__ import annotations

import base64
import math
from typing import Any

from relay.ids import AgentId, format_uid
from relay.pb.opamp.v1 import anyvalue_pb2
from relay.pb.opamp.v1 import opamp_pb2 as pb

INSTANCE_ID = "service.instance.id"


def value_of(value: anyvalue_pb2.AnyValue) -> Any:
    """Convert an attribute's value to plain Python: bytes to base64 text, an unset value to None."""
    kind = value.WhichOneof("value")
    if kind is None:
        return None
    if kind == "array_value":
        return [value_of(v) for v in value.array_value.values]
    if kind == "kvlist_value":
        return {kv.key: value_of(kv.value) for kv in value.kvlist_value.values}
    if kind == "bytes_value":
        return base64.b64encode(value.bytes_value).decode()
    plain = getattr(value, kind)
    # JSON cannot express NaN and infinities.
    return str(plain) if isinstance(plain, float) and not math.isfinite(plain) else plain


def attributes(description: bytes, only: frozenset[str] | None = None) -> dict[str, Any]:
    """The attributes of a serialised AgentDescription; an identifying attribute wins over a non-identifying one.

    Args:
        only: the keys to return; None for all.
    """
    message = pb.AgentDescription.FromString(description)
    values: dict[str, Any] = {}
    for attributes in (message.non_identifying_attributes, message.identifying_attributes):
        for kv in attributes:
            key = kv.key
            if only is None or key in only:
                values[key] = kv.value.string_value or value_of(kv.value)
    return values


def instance_id_of(description: pb.AgentDescription) -> str:
    """The agent's service.instance.id; empty if not reported."""
    for attributes in (description.identifying_attributes, description.non_identifying_attributes):
        for kv in attributes:
            if kv.key == INSTANCE_ID and kv.value.string_value:
                return kv.value.string_value
    return ""


def instance_id(description: bytes) -> str:
    """Like `instance_id_of`, for a serialised AgentDescription."""
    return instance_id_of(pb.AgentDescription.FromString(description))


def agent_id(description: pb.AgentDescription, uid: bytes) -> AgentId:
    """The agent's id across restarts: service.instance.id if reported, else its uid."""
    return AgentId(instance_id_of(description) or format_uid(uid))
