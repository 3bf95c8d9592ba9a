"""Who a caller was found to be, or why it is refused."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from relay.documents import Scalar

MAX_SUBJECT_CHARS = 256
MAX_LABELS = 32
MAX_LABEL_KEY_CHARS = 128
MAX_LABEL_VALUE_CHARS = 256
_REGION = "region"
"""The label that only an agent's node sets."""


class Method(enum.StrEnum):
    """How a caller proved who it is."""

    JWT = "jwt"
    API_KEY = "api_key"
    MTLS = "mtls"


class Reason(enum.StrEnum):
    """Why a caller is refused: a word for logs, metrics and the status page. The caller itself gets no detail."""

    ADDRESS = "address"
    """Its address is denied, or not among those that are allowed."""
    NO_CREDENTIAL = "no_credential"
    MALFORMED = "malformed"
    """Not a credential of any kind that is accepted here."""
    UNKNOWN_KEY = "unknown_key"
    """No such API key, or no key that the token is signed with."""
    BAD_SIGNATURE = "bad_signature"
    EXPIRED = "expired"
    NOT_YET_VALID = "not_yet_valid"
    LIFETIME = "lifetime"
    """Valid for longer than is accepted."""
    ISSUER = "issuer"
    AUDIENCE = "audience"
    CLAIMS = "claims"
    """A required claim is missing, or one is not of its form."""
    CERTIFICATE = "certificate"
    """Not a client certificate of an agent."""
    REVOKED = "revoked"
    NO_POLICY = "no_policy"
    """This node has no policy yet, so it knows neither keys nor revocations."""


@dataclass(frozen=True, slots=True)
class Principal:
    """An authenticated caller."""

    subject: str
    """Whose credential it is."""
    method: Method
    credential_id: str
    """`jti` of a token (else ten digits of its SHA-256), id of an API key, serial number of a certificate."""
    agent_id: str = ""
    """The agent id that the credential proves; empty for one that many agents share."""
    labels: Mapping[str, Scalar] = field(default_factory=dict)
    expires_at: float | None = None
    """Unix seconds from which the credential is refused, leeway included; None for never."""

    def has_ended(self, now: float) -> bool:
        """Whether the credential is refused at `now`, Unix seconds."""
        return self.expires_at is not None and now >= self.expires_at


def is_subject(value: Any) -> bool:
    """Whether a value can be a subject: printable text of 1 to 256 characters."""
    return isinstance(value, str) and 0 < len(value) <= MAX_SUBJECT_CHARS and value.isprintable()


def label_problem(labels: Any) -> str:
    """Why labels of a credential are not accepted; empty if they are."""
    if not isinstance(labels, Mapping):
        return "labels must be a mapping"
    if len(labels) > MAX_LABELS:
        return f"{len(labels)} labels are more than the maximum, {MAX_LABELS}"
    for key, value in labels.items():
        if not isinstance(key, str) or not 0 < len(key) <= MAX_LABEL_KEY_CHARS or not key.isprintable():
            return f"label {key!r}: a key is printable text of 1 to {MAX_LABEL_KEY_CHARS} characters"
        if key == _REGION:
            return f"label {_REGION} is set by an agent's node"
        if not isinstance(value, Scalar) or (isinstance(value, float) and not math.isfinite(value)):
            return f"label {key}: a value is text, a number, true or false"
        if len(str(value)) > MAX_LABEL_VALUE_CHARS or not str(value).isprintable():
            return f"label {key}: the value must be printable and have at most {MAX_LABEL_VALUE_CHARS} characters"
    return ""
