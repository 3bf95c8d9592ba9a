from relay.control.ledger.change import Entry
from relay.control.ledger.epoch import raise_epoch
from relay.control.ledger.state import State


def test_new_epoch_exceeds_all_seen_epochs() -> None:
    change = raise_epoch(State(epoch=2), "restored")
    assert (change.result, change.state.epoch) == (3, 3)
    assert change.entries == [Entry("raise-epoch", "Epoch/3", "2", "3", "restored")]
    assert raise_epoch(State(epoch=2), "another database", beyond=7).result == 8
