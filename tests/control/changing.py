"""Helpers for tests: changes by named people."""

from __future__ import annotations

from relay.control.access.actor import Actor
from relay.control.app import ControlPlane


async def change(plane: ControlPlane, text: str, actor: str = "ann") -> None:
    await plane.documents.apply([("f", text)], actor=Actor(actor))
