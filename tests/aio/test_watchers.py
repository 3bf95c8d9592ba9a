import asyncio

from relay.aio.watchers import Watchers


async def test_who_watches_is_woken_until_it_does_not() -> None:
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
