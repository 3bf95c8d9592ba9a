import asyncio
import gc
import os
import signal

from relay.aio.loop import run, settle_memory


def test_signal_sets_the_stop_event() -> None:
    async def main(stop: asyncio.Event) -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        await stop.wait()
        return 7

    assert run(main) == 7


def test_settle_memory_freezes_objects_and_raises_the_gc_threshold() -> None:
    before = gc.get_threshold()
    gc.set_threshold(700, 10, 10)

    async def main(stop: asyncio.Event) -> int:
        settle_memory()
        return gc.get_threshold()[0]

    try:
        assert run(main) > 700
        assert gc.get_freeze_count() > 0
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
