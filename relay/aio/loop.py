"""One uvloop for a program, and its orderly end on SIGINT or SIGTERM."""

from __future__ import annotations

import asyncio
import gc
import signal
from collections.abc import Callable, Coroutine
from typing import Any

import uvloop

_SELDOM = 50_000, 20, 100
"""When the collector runs. Ten thousand sessions, or a fleet, are millions of objects that live long: scanning them at the
default thresholds would stop the loop for a tenth of a second again and again."""


def run(main: Callable[[asyncio.Event], Coroutine[Any, Any, int]]) -> int:
    """Run `main(stop)` to its end on a new uvloop.

    The event `stop` is set by the first SIGINT or SIGTERM; a second one ends the process at once.

    Returns:
        What `main` returned: the exit status.
    """
    gc.set_threshold(*_SELDOM)
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
    """Move what start-up made out of the collector's sight: it lives as long as the program."""
    gc.collect()
    gc.freeze()
