"""What a rollout gives to whom, as content hashes: worked out once a look."""

from __future__ import annotations

from relay.control.revisions import Advance, content_inputs
from relay.control.rollouts import targets
from relay.control.rollouts.model import GlobalRevision, Rollout
from relay.policy import template as templates

SAME = (b"", b"")
"""What a rollout changes for an agent for which it changes nothing."""


class Contents:
    """What a rollout gives, by region."""

    def __init__(self, rollout: Rollout, advance: Advance) -> None:
        self._rollout = rollout
        self._advance = advance
        self._candidates: dict[str, bytes | None] = {}
        self._stables: dict[str, bytes | None] = {}

    def candidate(self, region: str) -> bytes | None:
        """Content hash of the candidate; None where the region cannot render it."""
        if region not in self._candidates:
            self._candidates[region] = content_hash(self._advance, self._rollout.candidate, region)
        return self._candidates[region]

    def stable(self, region: str) -> bytes | None:
        """Content hash of the stable revision; None where there is none."""
        if region not in self._stables:
            stable = self._rollout.stable
            self._stables[region] = content_hash(self._advance, stable, region) if stable is not None else None
        return self._stables[region]

    def of(self, target: targets.Target) -> tuple[bytes | None, bytes | None] | None:
        """(content hash by the candidate, by the stable revision) for an agent; None where the region cannot render it."""
        candidate = self.candidate(target.region) if target.chosen else None
        stable = self.stable(target.region) if target.had else None
        if target.chosen and candidate is None:
            return None
        return SAME if candidate == stable else (candidate, stable)


def content_hash(advance: Advance, revision: GlobalRevision, region: str) -> bytes | None:
    """The content hash of a revision in a region; None where its values do not resolve, or its template is gone."""
    if revision.template not in advance.templates:
        return None
    template, values = content_inputs(advance, revision, region)
    resolved, problems = templates.resolve(template, revision.values, values)
    if problems:
        return None
    return templates.content_hash(bytes.fromhex(revision.template_digest), resolved, revision.renderer)
