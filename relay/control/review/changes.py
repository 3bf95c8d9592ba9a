"""What a rollout changes: in its assignment, and in the rendered configs."""

from __future__ import annotations

import difflib
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

from relay.control.fleet.fleet import Fleet
from relay.control.ledger.history import History
from relay.control.ledger.ledger import Ledger
from relay.control.ledger.versions import Versions
from relay.control.rollouts.revision import GlobalConfig, GlobalRevision
from relay.control.rollouts.view import revision_hash
from relay.errors import NotFound
from relay.policy import template as templates
from relay.policy.mask import Mask
from relay.policy.model import ConfigTemplate, RegionVariables
from relay.policy.resources import Resource, split, variables_resource

_NOTHING: dict[str, Any] = {}
_DEFAULTS: tuple[Any, ...] = ("", False, 0, [], {}, None)
_INTERNAL = ("template_digest", "renderer")
"""Fields that follow from others, or are not written by users."""


class Changes:
    """Compares the stable revision and the candidate of rollouts, including old ones."""

    def __init__(self, ledger: Ledger, history: History, fleet: Fleet, versions: Versions) -> None:
        self._ledger = ledger
        self._history = history
        self._fleet = fleet
        self._versions = versions

    async def of(self, name: str) -> dict[str, Any]:
        """What a rollout changes, with secrets masked.

        Returns:
            `{rollout, assignment, from, to, changes: [{path, before, after}], configs: [{regions, text}], notes}`: `from`
            and `to` are `{template, revision}`, `text` is a unified diff of the configs of those regions.

        Raises:
            NotFound: there is no such rollout.
        """
        rollout = await self._history.get(name)
        before, after, mask = rollout.stable, rollout.candidate, Mask()
        configs, notes = await self._configs(before, after, mask)
        return {
            "rollout": rollout.name,
            "assignment": rollout.assignment,
            "from": _summary(before),
            "to": _summary(after),
            "changes": [
                {"path": path, "before": old, "after": new}
                for path, old, new in _differences(
                    mask.tree(before.plain()) if before is not None else _NOTHING, mask.tree(after.plain())
                )
                if path not in _INTERNAL and (before is not None or new not in _DEFAULTS)
            ],
            "configs": configs,
            "notes": notes,
        }

    async def _configs(
        self, before: GlobalRevision | None, after: GlobalRevision, mask: Mask
    ) -> tuple[list[dict[str, Any]], list[str]]:
        regions: dict[tuple[str, str], list[str]] = {}
        notes: dict[str, None] = {}
        if not isinstance(after, GlobalConfig):
            return [], []
        for region in self._regions(after, *([before] if isinstance(before, GlobalConfig) else [])):
            texts = []
            for revision in (before, after):
                try:
                    texts.append(await self._text(revision, region, mask) if revision is not None else "")
                except NotFound as error:
                    notes[f"in region {region}: {error}"] = None
                    break
            else:
                regions.setdefault((texts[0], texts[1]), []).append(region)
        return [
            {"regions": [name for name in names if name], "text": _diff(*texts)} for texts, names in regions.items()
        ], list(notes)

    async def resolve_hash(self, digits: str) -> dict[str, Any]:
        """Find what a hash that is not a config hash stands for: a change, a revision, a document, and so on.

        Returns:
            `{hash, kind, name, slots: {REGION: {content_type, body}}}`; the slot of a document has an empty name.

        Raises:
            NotFound: nothing has this hash.
        """
        plain = {"hash": digits, "kind": "document"}
        if (match := await self._history.by_hash(digits)) is not None:
            rollout, revision = match
            kind = "change" if rollout.digest.startswith(digits) else "revision"
            slots = {}
            if isinstance(revision, GlobalConfig):
                content_type = (await self._template(revision.template)).spec.content_type
                for region in self._regions(revision):
                    slots[region] = {"content_type": content_type, "body": await self._text(revision, region)}
            return {**plain, "kind": kind, "name": f"{revision.title} of {rollout.name}", "slots": slots}
        if (document := await self._versions.by_digest(digits)) is not None:
            body = json.dumps(document[0], indent=2)
            slots = {"": {"content_type": "application/json", "body": f"{body}\n"}}
            return {**plain, "name": document[1], "slots": slots}
        if (config := await self._fleet.bodies.effective_config_of(digits)) is not None:
            slots = {
                slot: {"content_type": item.content_type, "body": item.body.decode("utf-8", "replace")}
                for slot, item in sorted(config.config_map.config_map.items())
            }
            return {**plain, "kind": "effective config", "name": "as agents reported it", "slots": slots}
        async for kind, hash_, name, value in self._parts():
            if hash_.startswith(digits):
                slots = {"": {"content_type": "application/json", "body": f"{json.dumps(value, indent=2)}\n"}}
                return {**plain, "kind": kind, "name": name, "slots": slots}
        raise NotFound(f"no config, revision, change, document, package or file has the hash {digits}")

    async def _parts(self) -> AsyncIterator[tuple[str, str, str, Any]]:
        """(kind, hash, name, value) of pinned variables and packages, of files, and of package sets offered to agents."""
        catalog = self._ledger.state.catalog
        for region in sorted(self._fleet.census.live_regions() | catalog.variables.keys()):
            for body in await self._versions.bodies("RegionVariables", region):
                variables = RegionVariables.model_validate(body)
                name = split(variables_resource(variables)[0])[1]
                yield "variables", name.rpartition("@")[2], name, variables.spec.values
        for version in catalog.packages.values():
            package = version.package
            plain = package.model_dump(mode="json", exclude_unset=True)
            yield "package", package.pin.rpartition("@")[2], package.pin, plain
            for file in package.files:
                yield "file", file.sha256, f"of {package.key}", file.model_dump(mode="json", exclude_unset=True)
        for agent in self._fleet.census.agents.values():
            if agent.packages is not None and agent.packages.hash:
                slots = [{"assignment": s.assignment, "hash": s.content_hash.hex()} for s in agent.packages.slots]
                yield "packages", agent.packages.hash.hex(), f"offered to {agent.agent_id}", slots

    def _regions(self, *revisions: GlobalConfig) -> list[str]:
        pinned = {region for revision in revisions for region in revision.variables}
        return sorted(pinned | self._fleet.census.live_regions()) or [""]

    async def _text(self, revision: GlobalRevision, region: str, mask: Mask | None = None) -> str:
        if not isinstance(revision, GlobalConfig):
            return ""
        template = await self._template(revision.template)
        pin = revision.variables.get(region)
        variables = (await self._variables(pin)).spec.values if pin is not None else {}
        resolved, problems = templates.resolve(template, revision.values, variables)
        if problems:
            raise NotFound("; ".join(reason for _, reason in problems))
        return mask.config(template, resolved) if mask is not None else templates.render(template, resolved).decode()

    async def _template(self, key: str) -> ConfigTemplate:
        if (template := self._ledger.state.catalog.templates.get(key)) is not None:
            return template
        for body in await self._versions.bodies("ConfigTemplate", key):
            return ConfigTemplate.model_validate(body)
        raise NotFound(f"ConfigTemplate {key} no longer exists")

    async def _variables(self, pin: str) -> RegionVariables:
        for body in await self._versions.bodies("RegionVariables", pin.partition("@")[0]):
            variables = RegionVariables.model_validate(body)
            if variables_resource(variables)[0] == Resource.VARIABLES.name_of(pin):
                return variables
        raise NotFound(f"RegionVariables {pin} no longer exists")


def _summary(revision: GlobalRevision | None) -> dict[str, str] | None:
    return None if revision is None else {"template": revision.title, "revision": revision_hash(revision) or ""}


def _differences(before: Any, after: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(path, value before, value after) of all leaves that differ; None for an absent value."""
    if before is None and isinstance(after, dict):
        before = {}
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted(before.keys() | after.keys()):
            yield from _differences(before.get(key), after.get(key), f"{path}.{key}" if path else key)
    elif before != after and json.dumps(before) != json.dumps(after):
        yield path, before, after


def _diff(before: str, after: str) -> str:
    lines = difflib.unified_diff(before.splitlines(keepends=True), after.splitlines(keepends=True), "before", "after")
    return "".join(lines)
