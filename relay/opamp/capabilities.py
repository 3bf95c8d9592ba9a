"""Capability bits of agents and of this server (spec: AgentCapabilities, ServerCapabilities)."""

from __future__ import annotations

import enum
import functools
from collections.abc import Sequence

from relay.pb.opamp.v1 import opamp_pb2 as pb


class AgentCapabilities(enum.IntFlag):
    """What an agent says it can do; records also keep the bits that are not named here."""

    REPORTS_STATUS = 0x1
    ACCEPTS_REMOTE_CONFIG = 0x2
    REPORTS_EFFECTIVE_CONFIG = 0x4
    ACCEPTS_PACKAGES = 0x8
    REPORTS_PACKAGE_STATUSES = 0x10
    REPORTS_HEALTH = 0x800
    REPORTS_REMOTE_CONFIG = 0x1000
    REPORTS_HEARTBEAT = 0x2000
    REPORTS_AVAILABLE_COMPONENTS = 0x4000


ACCEPTS_REMOTE_CONFIG = int(AgentCapabilities.ACCEPTS_REMOTE_CONFIG)
ACCEPTS_PACKAGES = int(AgentCapabilities.ACCEPTS_PACKAGES)
REPORTS_PACKAGE_STATUSES = int(AgentCapabilities.REPORTS_PACKAGE_STATUSES)
REPORTS_AVAILABLE_COMPONENTS = int(AgentCapabilities.REPORTS_AVAILABLE_COMPONENTS)
REPORTS_REMOTE_CONFIG = int(AgentCapabilities.REPORTS_REMOTE_CONFIG)
REPORTS_HEARTBEAT = int(AgentCapabilities.REPORTS_HEARTBEAT)

SERVER = (
    pb.ServerCapabilities_AcceptsStatus
    | pb.ServerCapabilities_OffersRemoteConfig
    | pb.ServerCapabilities_AcceptsEffectiveConfig
    | pb.ServerCapabilities_OffersPackages
    | pb.ServerCapabilities_AcceptsPackagesStatus
)
"""What this server can do; sent in the first answer of a session."""

DECIDING = ACCEPTS_REMOTE_CONFIG | ACCEPTS_PACKAGES
"""The bits that decisions depend on; they are part of an agent's cohort."""

_NAMES = {
    value.number: value.name.removeprefix("AgentCapabilities_")
    for value in pb.DESCRIPTOR.enum_types_by_name["AgentCapabilities"].values
    if value.number
}


@functools.lru_cache(maxsize=1000)
def names(bits: int) -> Sequence[str]:
    """The names of the bits that are set, lowest first; hex for a bit without a name."""
    labels = []
    for position in range(bits.bit_length()):
        bit = 1 << position
        if bits & bit:
            labels.append(_NAMES.get(bit, hex(bit)))
    return tuple(labels)
