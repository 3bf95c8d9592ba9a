"""A program's uvloop, and its orderly shutdown on SIGINT or SIGTERM."""

from __future__ import annotations

import asyncio
import gc
import signal
from collections.abc import Callable, Coroutine
from typing import Any

import uvloop

_GC_THRESHOLDS = 50_000, 20, 100
"""Ten thousand sessions, or a fleet, are millions of long-lived objects. At the default thresholds, scanning them would
stop the loop for a tenth of a second again and again."""


def run(main: Callable[[asyncio.Event], Coroutine[Any, Any, int]]) -> int:
    """Run `main(stop)` to completion on a new uvloop.

    The first SIGINT or SIGTERM sets `stop`; a second one kills the process.

    Returns:
        The exit status that `main` returned.
    """
    gc.set_threshold(*_GC_THRESHOLDS)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_until_signal(main))


async def _until_signal(main: Callable[[asyncio.Event], Coroutine[Any, Any, int]]) -> int:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def on_signal(number: int) -> None:
        if stop.is_set():
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal, number)
    try:
        return await main(stop)
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


def settle_memory() -> None:
    """Exempt the objects that start-up created from garbage collection: they live as long as the program."""
    gc.collect()
    gc.freeze()
