"""Mask what looks like a secret in diffs and explanations.

The OpenTelemetry Collector has passwords, tokens and keys in plain fields. Whoever may read a config may read them, but a
diff in the log of a CI job must not repeat them.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from relay.documents import canonical_json, parse
from relay.errors import Refused
from relay.policy import template as templates
from relay.policy.model import ConfigTemplate, is_secret_name
from relay.policy.template import Resolved

_REFERENCE = re.compile(r"\s*((Bearer|Basic|Token)\s+)?(\$\{[^}]*\}|\{\{[^}]*\}\})?\s*", re.IGNORECASE)
"""A reference to a secret, which is not secret itself."""
MASKED = re.compile(r"\[secret \d+\]")
"""What stands for a secret."""
_USER_INFO = re.compile(r"(?<=://)[^/@\s]+(?=@)")


class Mask:
    """Replaces secrets with numbers. One mask gives equal secrets equal numbers, so that changes stay visible."""

    def __init__(self) -> None:
        self._numbers: dict[bytes, int] = {}

    def tree(self, value: Any, *, is_secret: bool = False) -> Any:
        """Copy a plain value and mask its secrets."""
        if isinstance(value, dict):
            # What lies below a secret's name is secret too.
            return {
                key: self.tree(child, is_secret=is_secret or is_secret_name(str(key))) for key, child in value.items()
            }
        if isinstance(value, list):
            return [self.tree(child, is_secret=is_secret) for child in value]
        if isinstance(value, str):
            if is_secret and not _REFERENCE.fullmatch(value) and not MASKED.fullmatch(value):
                return self._masked(value)
            return _USER_INFO.sub(lambda match: self._masked(match.group()), value) if "://" in value else value
        return self._masked(value) if is_secret and value is not None and not isinstance(value, bool) else value

    def document(self, spec: dict[str, Any]) -> dict[str, Any]:
        """Copy a document's spec and mask its secrets. The text of a template is masked as the config that it is."""
        masked: dict[str, Any] = self.tree(spec)
        masked |= {"variables": list(map(self._variable, spec["variables"]))} if "variables" in spec else {}
        if isinstance(spec.get("text"), str):
            masked["text"] = self.text(spec["text"])
        return masked

    def config(self, template: ConfigTemplate, resolved: Resolved) -> str:
        """Render a config with its secrets masked."""
        # The name of a variable tells what is secret, wherever its value goes; in text, nothing else may.
        resolved = dataclasses.replace(resolved, values=self.tree(resolved.values))
        tree = self.tree(templates.substituted(template, resolved))
        text = templates.as_bytes(tree, template.spec.content_type).decode()
        return self.text(text) if _parsed(text) is not None else text

    def _variable(self, variable: Any) -> Any:
        """A variable of a template: its name says whether its default is secret."""
        is_secret = isinstance(variable, dict) and is_secret_name(str(variable.get("name", "")))
        values = {"default", "enum", "min", "max"}
        if not is_secret:
            return self.tree(variable)
        return {key: self.tree(value, is_secret=key in values) for key, value in variable.items()}

    def text(self, text: str, content_type: str = "text/yaml") -> str:
        """Mask the secrets in YAML or JSON. Text that is neither is hidden as a whole."""
        tree = _parsed(text)
        if tree is None:
            return f"{self._masked(text)}\n" if text.strip() else text
        masked = self.tree(tree)
        if masked == tree:
            return text  # with its comments
        return templates.as_bytes(masked, content_type).decode()

    def _masked(self, value: Any) -> str:
        return f"[secret {self._numbers.setdefault(canonical_json(value), len(self._numbers) + 1)}]"


def _parsed(text: str) -> dict[str, Any] | None:
    """A config in YAML or JSON; None if it is neither."""
    try:
        documents = parse(text, "config")
    except Refused:
        return None
    value = documents[0].value if len(documents) == 1 else None
    return value if isinstance(value, dict) else None
