import asyncio
import logging

import pytest

from relay.aio.tasks import Tasks


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
