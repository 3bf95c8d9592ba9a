"""The health of the control plane, and whether it accepts changes."""

from __future__ import annotations

from relay.control.fleet import views
from relay.control.fleet.fleet import Fleet
from relay.control.identity import Identities
from relay.control.keys.trust import Trust
from relay.control.ledger.ledger import Ledger
from relay.control.packages.blobs import Blobs
from relay.control.regions.publisher import Publisher
from relay.control.storage.database import Database


class Condition:
    """Collects health from the other parts. Has no state of its own."""

    def __init__(
        self,
        database: Database,
        fleet: Fleet,
        ledger: Ledger,
        publisher: Publisher,
        blobs: Blobs,
        trust: Trust,
        identities: Identities | None = None,
    ) -> None:
        self._blobs = blobs
        self._trust = trust
        self._identities = identities
        self._database = database
        self._fleet = fleet
        self._ledger = ledger
        self._publisher = publisher

    @property
    def unwritable(self) -> str:
        """Why the database cannot be written; empty while it can."""
        return f"database: {self._database.problem}" if self._database.problem else ""

    @property
    def degraded(self) -> list[str]:
        """All problems, one per item."""
        problems = [self.unwritable] if self.unwritable else []
        if self.refusal:
            problems.append(self.refusal)
        if self._identities is not None and self._identities.problem:
            problems.append(f"the certificate for nodes could not be replaced: {self._identities.problem}")
        problems += [
            f"package file {sha256} was damaged and has been removed: push it again" for sha256 in self._blobs.damaged
        ]
        problems += [
            f"policy of region {r} is not published: {why}" for r, why in sorted(self._publisher.problems.items())
        ]
        version = self._trust.current.version
        for name, node in sorted(self._fleet.census.nodes.items()):
            if node.connected and node.key_set > version:
                problems.append(
                    f"node {name} trusts key set {node.key_set}, and this database has {version}: it is older than a"
                    " rotation, and nodes refuse its policy; restore a newer backup"
                )
            if node.connected:
                problems += [f"node {name}: {problem}" for problem in views.problems(node)]
        return problems

    @property
    def refusal(self) -> str:
        """Why changes are refused; empty while they are accepted."""
        nodes = sorted(self._fleet.census.nodes.items())
        ahead = [(name, node.ahead) for name, node in nodes if node.ahead and node.ahead[0] >= self._ledger.state.epoch]
        if not ahead:
            return ""
        name, version = ahead[0]
        others = f" and {len(ahead) - 1} others" if len(ahead) > 1 else ""
        return (
            f"this database is older than the published policy, or is a different one: node {name}{others} holds manifest"
            f" {list(version)}. Changes are refused until you decide which is right: restore the newest backup,"
            " or keep this database with `opampctl epoch raise --reason TEXT`"
        )
