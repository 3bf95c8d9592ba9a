import asyncio

from relay.aio.watchers import Watchers


async def test_wake_sets_events_until_they_are_discarded() -> None:
    watchers, one, two = Watchers(), asyncio.Event(), asyncio.Event()
    watchers.add(one)
    watchers.add(two)
    watchers.wake()
    assert one.is_set()
    assert two.is_set()
    one.clear()
    watchers.discard(one)
    watchers.wake()
    assert not one.is_set()
