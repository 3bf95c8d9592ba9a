"""How the control plane is, for probes and people, and whether it takes changes."""

from __future__ import annotations

from relay.control.fleet import views
from relay.control.fleet.fleet import Fleet
from relay.control.ledger.ledger import Ledger
from relay.control.packages.blobs import Blobs
from relay.control.regions.publisher import Publisher
from relay.control.storage.database import Database


class Condition:
    """Asks those who know; holds nothing."""

    def __init__(self, database: Database, fleet: Fleet, ledger: Ledger, publisher: Publisher, blobs: Blobs) -> None:
        self._blobs = blobs
        self._database = database
        self._fleet = fleet
        self._ledger = ledger
        self._publisher = publisher

    @property
    def unwritable(self) -> str:
        """Why nothing can be written; empty where it can."""
        return f"database: {self._database.problem}" if self._database.problem else ""

    @property
    def degraded(self) -> list[str]:
        """What is not well, one a line."""
        found = [self.unwritable] if self.unwritable else []
        if self.refusal:
            found.append(self.refusal)
        found += [
            f"package file {sha256} was damaged and has been removed: push it again" for sha256 in self._blobs.damaged
        ]
        found += [
            f"policy of region {r} is not published: {why}" for r, why in sorted(self._publisher.problems.items())
        ]
        for name, node in sorted(self._fleet.census.nodes.items()):
            if node.connected:
                found += [f"node {name}: {problem}" for problem in views.problems(node)]
        return found

    @property
    def refusal(self) -> str:
        """Why no change is taken; empty where it is."""
        nodes = sorted(self._fleet.census.nodes.items())
        ahead = [(name, node.ahead) for name, node in nodes if node.ahead and node.ahead[0] >= self._ledger.state.epoch]
        if not ahead:
            return ""
        name, version = ahead[0]
        others = f" and {len(ahead) - 1} others" if len(ahead) > 1 else ""
        return (
            f"this database is older than what was published, or a different one: node {name}{others} holds manifest"
            f" {list(version)}. No change is taken until it is known which is right: start with the newest backup,"
            " or `opampctl epoch raise --reason TEXT` to go on with this one"
        )
