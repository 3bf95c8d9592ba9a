"""Reads documents from the texts that people write: each must be well formed and defined once."""

from __future__ import annotations

from collections.abc import Iterable

from relay.documents import Document, leaves, parse, parts_of
from relay.errors import Problem, Refused
from relay.policy import reading
from relay.policy import template as templates
from relay.policy.mask import MASKED
from relay.policy.model import ConfigTemplate
from relay.policy.reading import AnyDocument


def read(texts: Iterable[tuple[str, str]]) -> list[tuple[Document, AnyDocument]]:
    """The documents in some texts, each with its source position.

    Args:
        texts: (source name, YAML text).

    Raises:
        Refused: with every problem.
    """
    problems: list[Problem] = []
    results: list[tuple[Document, AnyDocument]] = []
    first: dict[tuple[str, str], Document] = {}
    for source, text in texts:
        try:
            documents = parse(text, source)
        except Refused as refused:
            problems += refused.problems
            continue
        if not documents:
            problems.append(Problem(source, 0, "", "contains no documents"))
        for raw in parts_of(documents):
            document, own_problems = reading.read(raw)
            problems += own_problems
            if document is None:
                continue
            identity = (document.kind, document.key)
            if identity in first:
                other = first[identity]
                reason = f"{document.kind} {document.key} is defined twice; first at {other.source}:{other.line}"
                problems.append(raw.problem("", reason))
                continue
            first[identity] = raw
            problems += _masked(raw)
            if isinstance(document, ConfigTemplate):
                problems += [raw.problem(p, r) for p, r in templates.problems_of(document)]
            results.append((raw, document))
    if problems:
        raise Refused(problems)
    return results


def _masked(raw: Document) -> list[Problem]:
    """Values that were masked when the document was read, and would now be stored like that."""
    reason = "is a masked secret: get the document with --reveal before you change it"
    return [raw.problem(path, reason) for path, value in leaves(raw.value) if MASKED.search(str(value))]
