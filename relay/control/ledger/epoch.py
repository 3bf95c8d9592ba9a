"""The epoch: whatever nodes hold of earlier ones is older than what is published from now on."""

from __future__ import annotations

import dataclasses

from relay.control.ledger.change import Change, Entry
from relay.control.ledger.state import State


def raise_epoch(state: State, reason: str, *, beyond: int = 0) -> Change[int]:
    """Begin a new epoch; give its number.

    Args:
        beyond: an epoch that was seen elsewhere.
    """
    epoch = max(state.epoch, beyond) + 1
    entry = Entry("raise-epoch", f"Epoch/{epoch}", str(epoch - 1), str(epoch), reason)
    return Change(dataclasses.replace(state, epoch=epoch), epoch, entries=[entry])
