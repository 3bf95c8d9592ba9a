"""What goes up next: agents that changed, sums, and how the node is."""

from __future__ import annotations

from relay.link.protocol import ReportSender
from relay.node.registry import Registry
from relay.node.status import Status
from relay.pb.relay.v1 import link_pb2


class Reports:
    """Makes them."""

    def __init__(self, sender: ReportSender, registry: Registry, status: Status) -> None:
        self._sender = sender
        self._registry = registry
        self._status = status

    def next(self) -> link_pb2.StatusReport | None:
        """The next report; None where nothing waits."""
        registry = self._registry
        report = self._sender.next(
            state=registry.state,
            body=registry.effective_config,
            listings=registry.listings,
            shards=registry.shards.sums,
        )
        if report is not None:
            report.rollup.CopyFrom(registry.rollup.message())
            report.status.CopyFrom(self._status.message())
        return report
