"""The epoch: manifests of a new epoch replace all manifests of earlier ones."""

from __future__ import annotations

import dataclasses

from relay.control.ledger.change import Change, Entry
from relay.control.ledger.state import State


def raise_epoch(state: State, reason: str, *, beyond: int = 0) -> Change[int]:
    """Begin a new epoch. Returns its number.

    Args:
        beyond: an epoch seen at a node; the new one must be higher.
    """
    epoch = max(state.epoch, beyond) + 1
    entry = Entry("raise-epoch", f"Epoch/{epoch}", str(epoch - 1), str(epoch), reason)
    return Change(dataclasses.replace(state, epoch=epoch), epoch, entries=[entry])
