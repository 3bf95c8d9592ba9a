"""Logs: one JSON object a line, or a readable form on a terminal.

Fields are the guide's: timestamp, level, component, event, then what the event says. `event` is a stable word
(`agent_connected`), never a sentence with values in it.
"""

from __future__ import annotations

import logging
import sys
from typing import Any, TextIO

import structlog
from structlog.typing import EventDict, WrappedLogger

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warn": logging.WARNING, "error": logging.ERROR}
_LIBRARIES = ("aiosqlite", "alembic", "asyncio", "grpc", "httpx", "picows", "sqlalchemy", "uvicorn", "aiohttp")


def configure(*, level: str, component: str, stream: TextIO | None = None, readable: bool | None = None) -> None:
    """Send all logs of the process to `stream` (standard error by default).

    Args:
        level: one of LEVELS; libraries are kept at warnings unless it is `debug`.
        component: the program's name in each line.
        readable: None means: readable on a terminal, JSON elsewhere.
    """
    out = stream or sys.stderr
    if readable is None:
        readable = out.isatty()
    shared: list[Any] = [structlog.processors.TimeStamper(fmt="iso", utc=True), _level_and_component(component)]
    render: list[Any] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
    if readable:
        render.append(structlog.dev.ConsoleRenderer(colors=out.isatty()))
    else:
        render += [structlog.processors.format_exc_info, _guide_order, structlog.processors.JSONRenderer()]
    handler = logging.StreamHandler(out)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(processors=render, foreign_pre_chain=shared))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(LEVELS[level])
    for name in _LIBRARIES:
        logging.getLogger(name).setLevel(logging.NOTSET if level == "debug" else logging.WARNING)
    # aiohttp logs what peers send wrong as errors of ours, with a traceback; our own errors are logged where they happen.
    logging.getLogger("aiohttp.server").setLevel(logging.DEBUG if level == "debug" else logging.CRITICAL)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )


def get(name: str) -> structlog.typing.FilteringBoundLogger:
    """The logger of a module. Cheap enough for events, not for every heartbeat."""
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger(name)
    return logger


def enabled(level: str) -> bool:
    """Whether lines of this level are written: for places where asking the logger itself would cost too much."""
    return logging.getLogger().isEnabledFor(LEVELS[level])


def _level_and_component(component: str) -> Any:
    def add(_: WrappedLogger, method: str, event: EventDict) -> EventDict:
        event["level"] = {"warn": "WARN", "warning": "WARN", "exception": "ERROR"}.get(method, method.upper())
        event["component"] = component
        return event

    return add


def _guide_order(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    head = {key: event.pop(key) for key in ("timestamp", "level", "component", "event") if key in event}
    return {**head, **event}
