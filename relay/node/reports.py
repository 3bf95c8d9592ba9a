"""Builds the reports to the control plane: changed agents, sums, and the node's status."""

from __future__ import annotations

from relay.link.protocol.reports import ReportSender
from relay.node.registry import Registry
from relay.node.status import Status
from relay.pb.relay.v1 import link_pb2


class Reports:
    """Adds the node's rollup and status to the sender's reports."""

    def __init__(self, sender: ReportSender, registry: Registry, status: Status) -> None:
        self._sender = sender
        self._registry = registry
        self._status = status

    def next(self) -> link_pb2.StatusReport | None:
        """The next report; None if there is nothing to report."""
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
