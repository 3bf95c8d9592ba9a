"""Suggestions for misspelled words."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any, get_args


def suggestion(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean X?` if a known word is similar to `word`, else an empty string."""
    by_lower = {name.lower(): name for name in known}
    matches = difflib.get_close_matches(word.lower(), by_lower, n=1)
    return f"; did you mean {by_lower[matches[0]]}?" if matches else ""


def fields_at(model: Any, path: Sequence[int | str]) -> list[str]:
    """Names of the fields at a path inside a pydantic model; empty if unknown.

    Args:
        path: keys and indices, as pydantic's errors give them.
    """
    models = [model]
    for step in path:
        models = [
            inner
            for outer in models
            for inner in _models(outer.model_fields[step].annotation if step in outer.model_fields else None)
        ] or models  # for an index, a dict key or a union member, the models stay the same
    return sorted({name for outer in models for name in outer.model_fields})


def _models(annotation: Any) -> list[Any]:
    if hasattr(annotation, "model_fields"):
        return [annotation]
    return [inner for argument in get_args(annotation) for inner in _models(argument)]
