import asyncio
import logging

import pytest

from relay.aio.tasks import Tasks, beside, run_to_completion


async def test_close_cancels_running_tasks() -> None:
    tasks = Tasks()
    running = tasks.spawn(asyncio.sleep(60), name="sleeper")
    await tasks.close()
    assert running.cancelled()
    await tasks.close()


async def test_failed_task_is_logged_with_its_name(caplog: pytest.LogCaptureFixture) -> None:
    async def die() -> None:
        raise ValueError("why")

    tasks = Tasks()
    with caplog.at_level(logging.ERROR):
        await asyncio.wait([tasks.spawn(die(), name="doomed")])
        await asyncio.sleep(0)
    assert "doomed" in caplog.text
    assert "why" in caplog.text


async def test_beside_ends_the_task_with_the_block() -> None:
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


async def test_beside_raises_errors_only_to_whoever_awaits_the_task() -> None:
    async def work() -> None:
        raise ValueError("no")

    async with beside(work(), name="work") as task:
        with pytest.raises(ValueError, match="no"):
            await task
    async with beside(work(), name="work"):
        pass


async def test_to_its_end_finishes_despite_cancellation() -> None:
    gate, done = asyncio.Event(), []

    async def work() -> str:
        await gate.wait()
        done.append(1)
        return "done"

    waiting = asyncio.ensure_future(run_to_completion(work(), name="work"))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.sleep(0)
    waiting.cancel()
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert done == [1]
    assert await run_to_completion(work(), name="work") == "done"


async def test_to_its_end_raises_the_error_or_an_earlier_cancellation() -> None:
    async def work() -> None:
        await asyncio.sleep(0.01)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await run_to_completion(work(), name="work")
    waiting = asyncio.ensure_future(run_to_completion(work(), name="work"))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
