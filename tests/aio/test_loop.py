import asyncio
import gc
import os
import signal

from relay.aio.loop import run, settle_memory


def test_a_signal_sets_the_event_and_the_program_ends_by_itself() -> None:
    async def main(stop: asyncio.Event) -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        await stop.wait()
        return 7

    assert run(main) == 7


def test_settling_memory_makes_collections_rare() -> None:
    before = gc.get_threshold()
    try:
        settle_memory()
        assert gc.get_threshold()[0] > before[0]
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
