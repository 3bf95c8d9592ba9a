"""Sums over all agents of a node: updated as agents change, sent as absolute numbers."""

from __future__ import annotations

from collections import Counter

from relay.opamp.offering import FAILED
from relay.opamp.record import Record
from relay.pb.opamp.v1 import opamp_pb2 as pb
from relay.pb.relay.v1 import link_pb2

Class = tuple[bool, str, bool | None, str]
"""(connected, transport, healthy, config status)."""

STATUS_NAMES = {
    pb.RemoteConfigStatuses_UNSET: "UNSET",
    pb.RemoteConfigStatuses_APPLIED: "APPLIED",
    pb.RemoteConfigStatuses_APPLYING: "APPLYING",
    pb.RemoteConfigStatuses_FAILED: "FAILED",
}


def status_name(status: int) -> str:
    """The name of a RemoteConfigStatuses value; unknown values count as UNSET."""
    return STATUS_NAMES.get(status, "UNSET")  # type: ignore[call-overload, no-any-return]


class Rollup:
    """How many agents are in each class. `Record.counted` is the class that an agent was last counted in."""

    def __init__(self) -> None:
        self._classes: Counter[Class] = Counter()
        self._interned: dict[Class, Class] = {}

    def count(self, record: Record) -> bool:
        """Count an agent in its current class. True if that changed a sum."""
        current: Class = (
            record.connected,
            record.transport,
            record.healthy(),
            FAILED if record.config.failure is not None else status_name(record.config_status().status),
        )
        if current == record.counted:
            return False
        self.forget(record)
        record.counted = self._interned.setdefault(current, current)
        self._classes[current] += 1
        return True

    def forget(self, record: Record) -> None:
        """Remove an agent from the sums."""
        if record.counted is not None:
            self._classes[record.counted] -= 1  # type: ignore[index]
            record.counted = None

    @property
    def connected(self) -> int:
        """Number of connected agents."""
        return sum(n for (connected, *_), n in self._classes.items() if connected)

    def message(self) -> link_pb2.Rollup:
        """The sums as sent to the control plane."""
        rollup = link_pb2.Rollup()
        for (connected, transport, healthy, status), n in self._classes.items():
            rollup.agents += n
            if not connected:
                continue
            rollup.connected += n
            rollup.healthy += n if healthy else 0
            rollup.unhealthy += n if healthy is False else 0
            rollup.config_status[status] += n
            rollup.by_transport[transport] += n
        return rollup
