"""Who asks."""

from __future__ import annotations

from typing import Annotated

from fastapi import Header

from relay.control.documents.apply import ANONYMOUS

__all__ = ["ANONYMOUS", "Actor"]

Actor = Annotated[str, Header(alias="X-OpAMP-Actor", max_length=256, description="who asks; not verified")]
