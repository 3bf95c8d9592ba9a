"""The exceptions that this project raises.

The class of an error says whose fault it is. Its `Outcome` says what the other side is told. Each of the three edges
(OpAMP, HTTP, gRPC) has one table from `Outcome` to its own status codes; no other code mentions a status code.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass


class Outcome(enum.Enum):
    """What an error means to the caller."""

    BAD_REQUEST = "bad_request"
    TOO_LARGE = "too_large"
    UNAUTHENTICATED = "unauthenticated"
    DENIED = "denied"
    NOT_FOUND = "not_found"
    CONFLICT = "conflict"
    UNAVAILABLE = "unavailable"
    INTERNAL = "internal"


class RelayError(Exception):
    """Base class of all errors that this project raises on purpose."""

    outcome = Outcome.INTERNAL
    retry_after_s: float | None = None

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class AgentError(RelayError):
    """The agent sent something invalid."""

    outcome = Outcome.BAD_REQUEST


class Malformed(AgentError):
    """The bytes are not a message of the protocol."""


class TooLarge(AgentError):
    """The agent's message exceeds a limit; the error text names the limit."""

    outcome = Outcome.TOO_LARGE


class Overloaded(RelayError):
    """This program is at one of its limits; the caller should retry after `retry_after_s`."""

    outcome = Outcome.UNAVAILABLE


class UpstreamError(RelayError):
    """The other end of the link failed."""

    outcome = Outcome.UNAVAILABLE


class StoreError(RelayError):
    """Data could not be written or read. A miss is None, not an error."""

    outcome = Outcome.UNAVAILABLE


class PortError(RelayError):
    """A listening port cannot be opened."""

    outcome = Outcome.INTERNAL


class NotFound(RelayError):
    """The named object does not exist."""

    outcome = Outcome.NOT_FOUND


class Duplicate(RelayError):
    """Another connected peer has the same name."""

    outcome = Outcome.CONFLICT


class Forbidden(RelayError):
    """The caller may not do this."""

    outcome = Outcome.DENIED


class Conflict(RelayError):
    """The request conflicts with the current state."""

    outcome = Outcome.CONFLICT


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a document or a settings file.

    Prints as `FILE:LINE: path: reason`, which editors and CI recognize.
    """

    source: str
    """File name, `-` for standard input, or the name of an environment variable or flag."""
    line: int
    """1-based; 0 for none."""
    path: str
    """Dotted path of the field; empty for the document itself."""
    reason: str

    def __str__(self) -> str:
        where = f"{self.source}:{self.line}" if self.line else self.source
        return f"{where}: {self.path}: {self.reason}" if self.path else f"{where}: {self.reason}"


class Refused(RelayError):
    """Documents or settings were refused; `problems` lists every problem, not only the first."""

    outcome = Outcome.BAD_REQUEST

    def __init__(self, problems: Sequence[Problem], *, outcome: Outcome = Outcome.BAD_REQUEST) -> None:
        super().__init__("\n".join(str(p) for p in problems))
        self.problems = tuple(problems)
        self.outcome = outcome


class SettingsError(Refused):
    """The program's settings were refused. The program exits with status 2."""
