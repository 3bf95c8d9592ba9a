"""What somebody may have meant by a word that nobody knows."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any, get_args


def close_to(word: str, known: Iterable[str]) -> str:
    """`; did you mean X?`, where something that is known is much like it; else empty."""
    by_lower = {name.lower(): name for name in known}
    found = difflib.get_close_matches(word.lower(), by_lower, n=1)
    return f"; did you mean {by_lower[found[0]]}?" if found else ""


def fields_at(model: Any, path: Sequence[int | str]) -> list[str]:
    """Names of the fields that a pydantic model has where a path leads; empty where that cannot be told.

    Args:
        path: keys and indices, as pydantic's errors give them.
    """
    models = [model]
    for step in path:
        models = [
            inner
            for outer in models
            for inner in _models(outer.model_fields[step].annotation if step in outer.model_fields else None)
        ] or models  # an index, a key of a dict, or a member of a union: the models stay those of before
    return sorted({name for outer in models for name in outer.model_fields})


def _models(annotation: Any) -> list[Any]:
    if hasattr(annotation, "model_fields"):
        return [annotation]
    return [inner for argument in get_args(annotation) for inner in _models(argument)]
