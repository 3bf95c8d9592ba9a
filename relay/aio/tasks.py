"""Tasks with an owner: named, reaped, and never failing silently."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

T = TypeVar("T")
_log = logging.getLogger("opamp-relay.tasks")


@asynccontextmanager
async def beside(work: Coroutine[Any, Any, T], *, name: str) -> AsyncIterator[asyncio.Task[T]]:
    """Run `work` beside a block and cancel it when the block ends. Its error, if any, goes to whoever awaits the task."""
    task = asyncio.create_task(work, name=name)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def run_to_completion(work: Coroutine[Any, Any, T], *, name: str) -> T:
    """Run `work` to completion even if the caller is cancelled; the cancellation is raised afterwards."""
    task = asyncio.create_task(work, name=name)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # mark it as retrieved: nobody is left to handle it
        raise


class Tasks:
    """The background tasks of one owner. A task that fails is logged at once; `close` cancels the rest."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()

    def spawn(self, work: Coroutine[Any, Any, Any], *, name: str) -> asyncio.Task[Any]:
        """Start `work`; `close` cancels it if it is still running."""
        task = asyncio.create_task(work, name=name)
        self._running.add(task)
        task.add_done_callback(self._reap)
        return task

    def _reap(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("task %s died", task.get_name(), exc_info=error)

    async def close(self) -> None:
        """Cancel the running tasks and wait for them. May be called twice."""
        running = list(self._running)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
