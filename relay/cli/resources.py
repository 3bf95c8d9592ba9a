"""What people call the kinds of documents."""

from __future__ import annotations

from relay.cli.options import usage
from relay.policy.kinds import BY_WORD, Kind
from relay.words import close_to


def kind_of(word: str) -> Kind | None:
    """The kind that somebody means; None where that is none of documents."""
    return BY_WORD.get(word.lower())


def plural_of(word: str) -> str:
    """The API's word for a kind of documents. Ends the command with status 2 where there is none."""
    if (kind := kind_of(word)) is None:
        raise usage(f"{word} is not a kind of document{close_to(word, BY_WORD)}")
    return kind.plural
