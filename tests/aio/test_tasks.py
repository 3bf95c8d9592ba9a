import asyncio
import logging

import pytest

from relay.aio.tasks import Tasks, beside, to_its_end


async def test_close_ends_what_still_runs() -> None:
    tasks = Tasks()
    running = tasks.spawn(asyncio.sleep(60), name="sleeper")
    await tasks.close()
    assert running.cancelled()
    await tasks.close()


async def test_a_task_that_dies_is_logged_with_its_name(caplog: pytest.LogCaptureFixture) -> None:
    async def die() -> None:
        raise ValueError("why")

    tasks = Tasks()
    with caplog.at_level(logging.ERROR):
        await asyncio.wait([tasks.spawn(die(), name="doomed")])
        await asyncio.sleep(0)
    assert "doomed" in caplog.text
    assert "why" in caplog.text


async def test_work_beside_a_block_ends_with_it() -> None:
    ended = []

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("work")

    async with beside(work(), name="work") as task:
        await asyncio.sleep(0)
        assert not task.done()
    assert ended == ["work"]
    assert task.cancelled()


async def test_an_error_of_it_is_for_who_awaits_it() -> None:
    async def work() -> None:
        raise ValueError("no")

    async with beside(work(), name="work") as task:
        with pytest.raises(ValueError, match="no"):
            await task
    async with beside(work(), name="work"):
        pass


async def test_what_must_end_ends_also_when_nobody_waits_any_more() -> None:
    gate, done = asyncio.Event(), []

    async def work() -> str:
        await gate.wait()
        done.append(1)
        return "done"

    waiting = asyncio.ensure_future(to_its_end(work(), name="work"))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.sleep(0)
    waiting.cancel()
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert done == [1]
    assert await to_its_end(work(), name="work") == "done"


async def test_an_error_of_what_must_end_is_raised_or_the_cancellation_if_that_was_first() -> None:
    async def work() -> None:
        await asyncio.sleep(0.01)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await to_its_end(work(), name="work")
    waiting = asyncio.ensure_future(to_its_end(work(), name="work"))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
