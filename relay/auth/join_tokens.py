"""Join tokens: what a new node is given, to find its control plane, to recognise it, and to be admitted once.

`opampj_` + base64url of JSON: `{v, id, secret, root, join, link}`. `join` and `link` are HOST:PORT; `root` is the SHA-256 of
the root key's public key, by which the node recognises its control plane; `secret` is what the control plane recognises.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from typing import NamedTuple

PREFIX = "opampj_"
_MAX_CHARS = 4096
_VERSION = 1
_HEX = re.compile(r"[0-9a-f]{64}")


class JoinToken(NamedTuple):
    """The content of a join token."""

    id: str
    secret: str
    root: str
    """SHA-256 of the root's public key, hex."""
    join: str
    """HOST:PORT where nodes join and renew."""
    link: str
    """HOST:PORT of the link."""

    def text(self) -> str:
        """The token."""
        content = json.dumps({"v": _VERSION, **self._asdict()}, separators=(",", ":"))
        return PREFIX + base64.urlsafe_b64encode(content.encode()).decode().rstrip("=")


def read_join_token(text: str) -> JoinToken:
    """Read a token.

    Raises:
        ValueError: it is not one. The message does not repeat it.
    """
    body = text.strip().removeprefix(PREFIX)
    if not text.strip().startswith(PREFIX) or len(body) > _MAX_CHARS:
        raise ValueError("not a join token")
    try:
        value = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
        version, token = value.pop("v"), JoinToken(**value)
    except (binascii.Error, ValueError, TypeError, AttributeError, KeyError):
        raise ValueError("not a join token, or not a whole one") from None
    if version != _VERSION:
        raise ValueError("a join token of a later version: upgrade this node")
    if not all(isinstance(part, str) and part for part in token) or not _HEX.fullmatch(token.root):
        raise ValueError("not a join token, or not a whole one")
    return token
