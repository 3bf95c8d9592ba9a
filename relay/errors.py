"""The one error tree.

Whose fault an error is, is its class. What the other side is told is its `Outcome`; the three edges (OpAMP, HTTP, gRPC)
each hold one table from `Outcome` to their own numbers, and nothing else in the code mentions a status number.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass


class Outcome(enum.Enum):
    """What an error means to whoever asked."""

    BAD_REQUEST = "bad_request"
    TOO_LARGE = "too_large"
    UNAUTHENTICATED = "unauthenticated"
    DENIED = "denied"
    NOT_FOUND = "not_found"
    CONFLICT = "conflict"
    UNAVAILABLE = "unavailable"
    INTERNAL = "internal"


class RelayError(Exception):
    """Base of all errors that this project raises on purpose."""

    outcome = Outcome.INTERNAL
    retry_after_s: float | None = None

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class AgentError(RelayError):
    """The agent sent what it may not send."""

    outcome = Outcome.BAD_REQUEST


class Malformed(AgentError):
    """Bytes that are not a message of the protocol."""


class TooLarge(AgentError):
    """A message over a limit; the message names the limit."""

    outcome = Outcome.TOO_LARGE


class Overloaded(RelayError):
    """We are at a limit of our own for now; `retry_after_s` says how long to stay away."""

    outcome = Outcome.UNAVAILABLE


class UpstreamError(RelayError):
    """The other end of the link failed."""

    outcome = Outcome.UNAVAILABLE


class StoreError(RelayError):
    """Bytes could not be kept or read. A miss is None and no error."""

    outcome = Outcome.UNAVAILABLE


class Unopened(RelayError):
    """A port that is to be listened on cannot be opened."""

    outcome = Outcome.INTERNAL


class NotFound(RelayError):
    """What was named does not exist."""

    outcome = Outcome.NOT_FOUND


class Duplicate(RelayError):
    """The name is taken by somebody else who is there."""

    outcome = Outcome.CONFLICT


class Conflict(RelayError):
    """What is asked for does not go with how things are now."""

    outcome = Outcome.CONFLICT


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a document or a settings file.

    Prints as `FILE:LINE: path: reason`, which editors and CI can follow.
    """

    source: str
    """File name, or `-` for standard input, or the name of the environment variable or flag."""
    line: int
    """1-based; 0 where there is none."""
    path: str
    """Dotted path of the field, empty for the document itself."""
    reason: str

    def __str__(self) -> str:
        where = f"{self.source}:{self.line}" if self.line else self.source
        return f"{where}: {self.path}: {self.reason}" if self.path else f"{where}: {self.reason}"


class Refused(RelayError):
    """Documents or settings were refused; every problem is in `problems`, not only the first."""

    outcome = Outcome.BAD_REQUEST

    def __init__(self, problems: Sequence[Problem], *, outcome: Outcome = Outcome.BAD_REQUEST) -> None:
        super().__init__("\n".join(str(p) for p in problems))
        self.problems = tuple(problems)
        self.outcome = outcome


class SettingsError(Refused):
    """A program's settings were refused. The program exits with status 2."""
