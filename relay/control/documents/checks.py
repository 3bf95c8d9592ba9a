"""Checks of well-formed documents that need the other documents or the fleet.

Templates must exist, every region must be able to resolve the values, and assignments must not compete for the same agents.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Protocol
from zoneinfo import ZoneInfo

from relay.control.ledger.catalog import AnyAssignment, Catalog
from relay.documents import Document
from relay.errors import Problem
from relay.policy import collector
from relay.policy import template as templates
from relay.policy.model import ConfigAssignment, ConfigTemplate, RegionVariables
from relay.policy.packages import PackageAssignment
from relay.policy.reading import AnyDocument
from relay.policy.selector import Matcher, implies
from relay.policy.strategy import RolloutStrategy
from relay.words import suggestion


class Known(Protocol):
    """The fleet as checks see it."""

    def __len__(self) -> int:
        """How many agents are known."""

    def vectors(self, matcher: Matcher) -> dict[int, str]:
        """Each vector that the matcher gives to some agent → the id of one such agent."""

    def live_regions(self) -> Set[str]:
        """Regions that have agents or a connected node."""


class Checks:
    """Checks documents in the context of a catalog.

    Args:
        validation: `warn`, `enforce` or `off`: what to do about errors in Collector configurations.
        channels: the names of the notification channels.
        require_strategy: assignments that can match agents with these labels must name a strategy; None to require none.
    """

    def __init__(
        self,
        *,
        known: Known,
        validation: str = "warn",
        channels: Set[str] = frozenset(),
        require_strategy: Mapping[str, str] | None = None,
    ) -> None:
        self._known = known
        self.validation = validation
        self._channels = channels
        self._require_strategy = require_strategy

    def live(self, region: str) -> Set[str]:
        """A set of the region, if it has agents or a connected node; else empty."""
        return {region} & self._known.live_regions()

    def problems(
        self, catalog: Catalog, changed: list[AnyDocument], sources: Mapping[tuple[str, str], Document]
    ) -> list[Problem]:
        """What is wrong with `catalog` because of the documents in `changed`."""
        problems: list[Problem] = []
        variables_changed = [d for d in changed if isinstance(d, RegionVariables)]
        own_keys = {d.key for d in changed if isinstance(d, ConfigAssignment)}
        for assignment in catalog.assignments.values():
            own = sources.get(("ConfigAssignment", assignment.key)) if assignment.key in own_keys else None
            blamed = own or (sources[("RegionVariables", variables_changed[0].key)] if variables_changed else None)
            if blamed is None:
                continue
            reference = assignment.spec.template
            template = catalog.templates.get(reference.key)
            if template is None:
                reason = f"there is no ConfigTemplate {reference.key}{suggestion(reference.key, catalog.templates)}"
                problems.append(blamed.problem("spec.template", reason))
                continue
            for path, reason in self.unresolved(catalog, assignment, template):
                if own is not None:
                    problems.append(own.problem(path, reason))
                else:
                    problems.append(blamed.problem("spec.values", f"ConfigAssignment {assignment.key}: {reason}"))
        for document in changed:
            source = sources[document.kind, document.key]
            if isinstance(document, ConfigAssignment) and self._lacks_strategy(document):
                required = ", ".join(f"{k}={v}" for k, v in (self._require_strategy or {}).items())
                reason = f"is required for agents with {required} (policies.config_update.require_strategy)"
                problems.append(source.problem("spec.strategy", reason))
            if isinstance(document, ConfigAssignment | PackageAssignment):
                problems += [source.problem(path, reason) for path, reason in _assignment_problems(catalog, document)]
        for strategy in (d for d in changed if isinstance(d, RolloutStrategy)):
            source = sources[strategy.kind, strategy.key]
            for i, window in enumerate(strategy.spec.windows):
                if not _is_time_zone(window.time_zone):
                    path = f"spec.windows.{i}.time_zone"
                    problems.append(source.problem(path, f"{window.time_zone!r} is not a time zone"))
        return problems

    def _lacks_strategy(self, assignment: ConfigAssignment) -> bool:
        spec = assignment.spec
        if self._require_strategy is None or spec.strategy or spec.observe_only:
            return False
        labels = spec.target_selector.labels
        return all(str(labels.get(key, value)) == value for key, value in self._require_strategy.items())

    def unresolved(
        self, catalog: Catalog, assignment: ConfigAssignment, template: ConfigTemplate, also: Set[str] = frozenset()
    ) -> list[tuple[str, str]]:
        """(path, reason) of each value that some region could not resolve.

        Checks the region that the selector names; otherwise every region with variables. A region that only has nodes is
        not checked unless it is in `also`: a region that joins later must not block every change. Its node rejects the
        assignment and reports it.
        """
        selected = assignment.spec.target_selector.labels.get("region")
        # The empty region stands for any region without variables.
        regions = {str(selected)} if selected is not None else catalog.variables.keys() | {""} | also
        unresolved: dict[tuple[str, str], None] = {}
        for region in sorted(regions):
            variables = catalog.variables.get(region)
            _, problems = templates.resolve(
                template, assignment.spec.values, variables.spec.values if variables else {}
            )
            # The empty region may not exist yet: what its variables lack counts only if there is no other region.
            if region == "" and len(regions - {""}) > 0:
                problems = [(name, reason) for name, reason in problems if name in assignment.spec.values]
            for name, reason in problems:
                where = f" in region {region}" if region and name not in assignment.spec.values else ""
                path = f"spec.values.{name}" if name in assignment.spec.values else "spec.values"
                unresolved[path, reason + where] = None
        return list(unresolved)

    def conflicts(self, catalog: Catalog, moved: list[AnyAssignment]) -> list[tuple[AnyAssignment, str]]:
        """Assignments of the same kind, priority and slot that compete for the same agents."""
        groups: dict[tuple[str, int, str], list[AnyAssignment]] = {}
        for assignment in catalog.all_assignments():
            slot = "" if isinstance(assignment, PackageAssignment) else assignment.spec.slot
            if isinstance(assignment, PackageAssignment) or not assignment.spec.observe_only:
                groups.setdefault((assignment.kind, assignment.spec.priority, slot), []).append(assignment)
        keys = {a.key for a in moved}
        conflicts: list[tuple[AnyAssignment, str]] = []
        for (_, priority, slot), group in groups.items():
            if len(group) < 2 or not any(a.key in keys for a in group):
                continue
            matcher = Matcher([a.spec.target_selector for a in group])
            vectors = self._known.vectors(matcher)
            for i, one in enumerate(group):
                for j, other in enumerate(group[:i]):
                    if one.key not in keys and other.key not in keys:
                        continue
                    culprit, rival = (one, other) if one.key in keys else (other, one)
                    selectors = one.spec.target_selector, other.spec.target_selector
                    reason = f"{rival.kind} {rival.key} has the same priority {priority}"
                    if slot:
                        reason += f" and slot {slot}"
                    if implies(*selectors) or implies(*reversed(selectors)):
                        conflicts.append((culprit, f"{reason}, and one selector includes the other"))
                        continue
                    both = next(
                        (name for v, name in vectors.items() if matcher.matches(i, v) and matcher.matches(j, v)), None
                    )
                    if both is not None:
                        conflicts.append((culprit, f"{reason}, and agent {both} matches both"))
        return conflicts

    def findings(self, source: Document, document: AnyDocument) -> list[tuple[Problem, bool]]:
        """(problem, whether it is an error) for what may be wrong with a document that is valid in form."""
        if isinstance(document, RolloutStrategy):
            return [
                (source.problem(f"spec.failure_policy.notification.{i}", f"the settings name no channel {name}"), False)
                for i, name in enumerate(document.spec.failure_policy.notification)
                if name not in self._channels
            ]
        if (
            isinstance(document, RegionVariables)
            and (regions := self._known.live_regions())
            and document.key not in regions
        ):
            return [(source.problem("metadata.name", f"no node of region {document.key} has connected"), False)]
        if self.validation == "off" or not isinstance(document, ConfigTemplate):
            return []
        if document.spec.config is None or not collector.is_collector_config(document.spec.config):
            return []
        return [
            (source.problem(f"spec.config.{f.path}", f.reason), f.is_error)
            for f in collector.check(document.spec.config)
        ]

    def unmatched(self, assignments: Sequence[AnyAssignment]) -> tuple[set[str], int]:
        """(keys of assignments that match no known agent, the number of known agents). No keys if no agent is known."""
        matcher = Matcher([assignment.spec.target_selector for assignment in assignments])
        vectors = self._known.vectors(matcher) if assignments else {}
        return {
            assignment.key
            for i, assignment in enumerate(assignments)
            if vectors and not any(matcher.matches(i, vector) for vector in vectors)
        }, len(self._known)


def _assignment_problems(catalog: Catalog, assignment: AnyAssignment) -> Iterator[tuple[str, str]]:
    strategy = assignment.spec.strategy
    if strategy is not None and strategy not in catalog.strategies:
        yield "spec.strategy", f"there is no RolloutStrategy {strategy}{suggestion(strategy, catalog.strategies)}"
    other = catalog.assignments if isinstance(assignment, PackageAssignment) else catalog.package_assignments
    if assignment.key in other:
        yield (
            "metadata.name",
            f"{other[assignment.key].kind} {assignment.key} already has this name, and rollouts are named after it",
        )
    if isinstance(assignment, PackageAssignment):
        for i, package in enumerate(assignment.spec.packages):
            key = package.key
            if key not in catalog.packages:
                yield f"spec.packages.{i}", f"there is no package {key}"
            elif key in catalog.yanked:
                yield f"spec.packages.{i}", f"package {key} was yanked"


def _is_time_zone(name: str) -> bool:
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        return False
    return True
