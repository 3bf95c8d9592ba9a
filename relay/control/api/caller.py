"""Who asks."""

from __future__ import annotations

from typing import Annotated

from fastapi import Header

Actor = Annotated[str, Header(alias="X-OpAMP-Actor", max_length=256, description="who asks; not verified")]
ANONYMOUS = "anonymous"
"""The actor of a change whose author said nothing."""
