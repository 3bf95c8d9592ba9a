"""Hiding what looks like a secret from those who only want to see what changes.

The OpenTelemetry Collector keeps passwords, tokens and keys in plain fields. Who may read a config may read them; a diff in
the log of a CI job, or an explanation, must not repeat them.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from relay.documents import canonical_json
from relay.policy import template as templates
from relay.policy.model import ConfigTemplate
from relay.policy.template import Resolved

_SECRET_KEY = re.compile(
    r"(password|passwd|passphrase|secret|token|authorization|credentials?|connection_?string"
    r"|(api|access|account|private|secret|shared|encryption|license|signing)[-_]?key)(_pem)?$",
    re.IGNORECASE,
)
_REFERENCE = re.compile(r"\s*((Bearer|Basic|Token)\s+)?(\$\{[^}]*\}|\{\{[^}]*\}\})?\s*", re.IGNORECASE)
"""Names where the secret is, and is none."""
_USER_INFO = re.compile(r"(?<=://)[^/@\s]+(?=@)")


class Mask:
    """Hides secrets by numbers: equal ones have equal numbers in all that one mask hid, so that a change can be seen."""

    def __init__(self) -> None:
        self._numbers: dict[bytes, int] = {}

    def tree(self, value: Any, *, is_secret: bool = False) -> Any:
        """A copy of a plain value without its secrets."""
        if isinstance(value, dict):
            return {key: self.tree(child, is_secret=bool(_SECRET_KEY.search(str(key)))) for key, child in value.items()}
        if isinstance(value, list):
            return [self.tree(child, is_secret=is_secret) for child in value]
        if isinstance(value, str):
            if is_secret and not _REFERENCE.fullmatch(value):
                return self._hidden(value)
            return _USER_INFO.sub(lambda found: self._hidden(found.group()), value) if "://" in value else value
        return self._hidden(value) if is_secret and value is not None and not isinstance(value, bool) else value

    def config(self, template: ConfigTemplate, resolved: Resolved) -> str:
        """What a template makes of values, without its secrets."""
        if template.spec.text is not None:  # in text nothing but the values' names tells what is secret
            resolved = dataclasses.replace(resolved, values=self.tree(resolved.values))
        tree = self.tree(templates.substituted(template, resolved))
        return templates.as_bytes(tree, template.spec.content_type).decode()

    def _hidden(self, value: Any) -> str:
        return f"[secret {self._numbers.setdefault(canonical_json(value), len(self._numbers) + 1)}]"
