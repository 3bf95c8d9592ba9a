"""The actor of a request."""

from __future__ import annotations

from typing import Annotated

from fastapi import Header

from relay.control.documents.apply import ANONYMOUS

__all__ = ["ANONYMOUS", "Actor"]

Actor = Annotated[
    str,
    Header(
        alias="X-OpAMP-Actor",
        min_length=1,
        max_length=256,
        pattern=r"^[\x20-\x7e]*$",
        description="who makes the request, in printable ASCII; unverified",
    ),
]
