"""What a rollout gives to which agents, as content hashes. Built anew for each look."""

from __future__ import annotations

from collections.abc import Callable

from relay.control.rollouts import targets
from relay.control.rollouts.revision import GlobalConfig, GlobalPackages, GlobalRevision, Pinned
from relay.control.rollouts.rollout import Rollout
from relay.policy import packages
from relay.policy import template as templates
from relay.policy.packages import PackageFile
from relay.policy.selector import Facts, Matcher

Given = tuple[str, bytes]
"""(slot, content hash)."""


class Contents:
    """The contents of a rollout. Configs differ by region, packages by agent."""

    def __init__(self, rollout: Rollout, pinned: Pinned) -> None:
        packages = [r for r in (rollout.candidate, rollout.stable) if isinstance(r, GlobalPackages)]
        self.selectors = [file.selector for r in packages for p in pinned.packages(r) for file in p.files]
        """Selectors of package files. Agents of one region get the same unless these differ for them."""
        self._candidate = hasher(rollout.candidate, pinned)
        self._stable = hasher(rollout.stable, pinned) if rollout.stable is not None else None
        self._slots = rollout.candidate.slot, rollout.stable.slot if rollout.stable is not None else ""
        self._is_config = isinstance(rollout.candidate, GlobalConfig)

    def candidate(self, region: str, facts: Facts) -> Given | None:
        """The candidate for an agent; None if its region cannot render it or no file matches."""
        digest = self._candidate(region, facts)
        return (self._slots[0], digest) if digest is not None else None

    def renders(self, region: str) -> bool:
        """Whether a region can render the candidate."""
        return not self._is_config or self._candidate(region, _NOBODY) is not None

    def of(self, target: targets.Target) -> tuple[Given | None, Given | None] | None:
        """Return (content of the candidate, content before) for an agent; None if its region cannot render the candidate."""
        stable = None
        if target.had and self._stable is not None:
            digest = self._stable(target.region, target.facts)
            stable = (self._slots[1], digest) if digest is not None else None
        if not target.chosen:
            return None, stable
        candidate = self.candidate(target.region, target.facts)
        if candidate is None and self._is_config:
            return None
        # Without a matching file, the agent keeps what it has.
        return candidate or stable, stable


_NOBODY = Facts("", {}, {})


def hasher(revision: GlobalRevision, pinned: Pinned) -> Callable[[str, Facts], bytes | None]:
    """Return a function (region, agent) → content hash; None if the revision cannot be rendered or its contents are gone."""
    if isinstance(revision, GlobalPackages):
        return _packages_hasher(revision, pinned)
    by_region: dict[str, bytes | None] = {}

    def of(region: str, facts: Facts) -> bytes | None:
        if region not in by_region:
            by_region[region] = content_hash(pinned, revision, region)
        return by_region[region]

    return of


def _packages_hasher(revision: GlobalPackages, pinned: Pinned) -> Callable[[str, Facts], bytes | None]:
    versions = pinned.packages(revision)
    complete = len(versions) == len(revision.packages)
    files = [file for version in versions for file in version.files]
    matcher = Matcher(file.selector for file in files)
    number_of = {file.selector.identity: i for i, file in enumerate(files)}
    by_vector: dict[int, bytes | None] = {}

    def of(region: str, facts: Facts) -> bytes | None:
        vector = matcher.vector(facts)
        if vector not in by_vector:

            def matches(file: PackageFile) -> bool:
                return matcher.matches(number_of[file.selector.identity], vector)

            offer = packages.pick(versions, matches) if complete else None
            by_vector[vector] = offer.content_hash if offer is not None else None
        return by_vector[vector]

    return of


def renders(pinned: Pinned, revision: GlobalRevision, region: str) -> bool:
    """Whether a region can render a revision."""
    return not isinstance(revision, GlobalConfig) or content_hash(pinned, revision, region) is not None


def content_hash(pinned: Pinned, revision: GlobalConfig, region: str) -> bytes | None:
    """The content hash of a config in a region; None if its values do not resolve or its template is gone."""
    if revision.template not in pinned.templates:
        return None
    template, values = pinned.inputs(revision, region)
    resolved, problems = templates.resolve(template, revision.values, values)
    if problems:
        return None
    return templates.content_hash(bytes.fromhex(revision.template_digest), resolved, revision.renderer)
