"""Names that users give to document kinds."""

from __future__ import annotations

from relay.cli.options import usage
from relay.policy.kinds import BY_WORD, Kind
from relay.words import suggestion


def kind_of(word: str) -> Kind | None:
    """Look up the document kind that `word` names; None if there is none."""
    return BY_WORD.get(word.lower())


def plural_of(word: str) -> str:
    """The API's name for a document kind. An unknown kind ends the command with status 2."""
    if (kind := kind_of(word)) is None:
        raise usage(f"{word} is not a kind of document{suggestion(word, BY_WORD)}")
    return kind.plural
