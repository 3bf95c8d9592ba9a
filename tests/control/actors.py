"""People, for tests."""

from __future__ import annotations

from relay.control.access.actor import Actor

ANN, BOB, EVE = (Actor(name) for name in ("ann", "bob", "eve"))
