"""Who an agent is: its attributes, its agent id, whether two of one uid are the same (spec: AgentDescription)."""

from __future__ import annotations

import base64
import math
from typing import Any

from relay.ids import AgentId, format_uid
from relay.pb.opamp.v1 import anyvalue_pb2
from relay.pb.opamp.v1 import opamp_pb2 as pb

INSTANCE_ID = "service.instance.id"


def value_of(value: anyvalue_pb2.AnyValue) -> Any:
    """An attribute's value as a plain one; bytes as base64 text, nothing set as None."""
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
    # JSON has no word for these.
    return str(plain) if isinstance(plain, float) and not math.isfinite(plain) else plain


def attributes(description: bytes, only: frozenset[str] | None = None) -> dict[str, Any]:
    """The attributes of a serialised AgentDescription; an identifying one wins over another of the same key.

    Args:
        only: the keys that are wanted; None for all.
    """
    message = pb.AgentDescription.FromString(description)
    found: dict[str, Any] = {}
    for attributes in (message.non_identifying_attributes, message.identifying_attributes):
        for kv in attributes:
            key = kv.key
            if only is None or key in only:
                found[key] = kv.value.string_value or value_of(kv.value)
    return found


def agent_id(description: pb.AgentDescription, uid: bytes) -> AgentId:
    """What the agent is known by across restarts: service.instance.id where it says one, else its uid."""
    for attributes in (description.identifying_attributes, description.non_identifying_attributes):
        for kv in attributes:
            if kv.key == INSTANCE_ID and kv.value.string_value:
                return AgentId(kv.value.string_value)
    return AgentId(format_uid(uid))


def same_agent(one: bytes, other: bytes) -> bool:
    """Whether two serialised AgentDescriptions have equal identifying attributes, so are one agent under one uid.

    A description that is missing settles nothing: an agent that reconnects may leave it out, so it counts as the same.
    """
    if not one or not other or one == other:
        return True
    sets = [
        {kv.key: kv.value.SerializeToString(deterministic=True) for kv in identifying}
        for identifying in (pb.AgentDescription.FromString(d).identifying_attributes for d in (one, other))
    ]
    return sets[0] == sets[1]
