"""Logs: one JSON object per line, or a readable form on a terminal.

The fields are the deployment guide's: timestamp, level, component, event, then the event's own. `event` is a stable name
(`agent_connected`), never a sentence with values in it.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TextIO

import structlog
from pydantic_core import to_json
from structlog.typing import EventDict, WrappedLogger

from relay.observe.lines import MAX_BYTES, Lines

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warn": logging.WARNING, "error": logging.ERROR}
_LIBRARIES = ("aiosqlite", "alembic", "asyncio", "grpc", "httpx", "picows", "sqlalchemy", "uvicorn", "aiohttp")
_LEVEL_NAMES = {"warn": "WARN", "warning": "WARN", "exception": "ERROR"}
"""Logger method → level, where the two names differ."""


class _Output:
    """Where this process logs, and in which form."""

    lines: Lines | None = None
    component = ""
    readable: structlog.dev.ConsoleRenderer | None = None
    second = 0
    timestamp = ""
    """`second`, formatted."""


def configure(
    *,
    level: str,
    component: str,
    stream: TextIO | None = None,
    readable: bool | None = None,
    max_bytes: int = MAX_BYTES,
) -> None:
    """Send all logs of the process to `stream` (standard error by default).

    Args:
        level: one of LEVELS; libraries log warnings and errors only, unless it is `debug`.
        component: the program's name in each line.
        readable: None for readable on a terminal, JSON elsewhere.
        max_bytes: bound of the queue for a slow reader; beyond it lines are dropped and counted.
    """
    out = stream or sys.stderr
    if readable is None:
        readable = out.isatty()
    close()
    _Output.component = component
    _Output.readable = _console(out) if readable else None
    _Output.lines = Lines(out, max_bytes=max_bytes)
    root = logging.getLogger()
    root.handlers[:] = [_LibraryHandler()]
    root.setLevel(LEVELS[level])
    for name in _LIBRARIES:
        logging.getLogger(name).setLevel(logging.NOTSET if level == "debug" else logging.WARNING)
    # aiohttp logs peers' mistakes as our errors, with a traceback; our own errors are logged where they happen.
    logging.getLogger("aiohttp.server").setLevel(logging.DEBUG if level == "debug" else logging.CRITICAL)
    structlog.configure(
        processors=[_render],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=lambda *_: _LineLogger(),
        cache_logger_on_first_use=True,
    )


def _console(out: TextIO) -> structlog.dev.ConsoleRenderer:
    # The formatter that it prefers shows local variables, and so secrets.
    return structlog.dev.ConsoleRenderer(colors=out.isatty(), exception_formatter=structlog.dev.plain_traceback)


def say(text: str) -> None:
    """Write a line for people, unformatted, after everything logged so far. Never waits for a reader."""
    if _Output.lines is not None:
        _Output.lines.put(f"{text}\n".encode("utf-8", "backslashreplace"))


def close() -> None:
    """Write the queue and stop logging; `configure` starts again."""
    if _Output.lines is not None:
        _Output.lines.close()
        _Output.lines = None


def dropped() -> int:
    """Lines dropped because nobody read them in time; for the metric."""
    return _Output.lines.dropped if _Output.lines is not None else 0


def get(name: str) -> structlog.typing.FilteringBoundLogger:
    """The logger of a module. Cheap enough for events, not for every heartbeat."""
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger(name)
    return logger


def enabled(level: str) -> bool:
    """Whether lines of this level are written. For places where a call of the logger would cost too much."""
    return logging.getLogger().isEnabledFor(LEVELS[level])


class _LineLogger:
    """The innermost logger: takes rendered lines."""

    def put(self, line: bytes) -> None:
        if _Output.lines is not None:
            _Output.lines.put(line)

    debug = info = warning = error = critical = msg = put


class _LibraryHandler(logging.Handler):
    """Logs the records of libraries."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            event: dict[str, Any] = {"event": record.getMessage()}
        except Exception as error:  # a bad format string must not raise in the caller
            event = {"event": str(record.msg), "log_error": repr(error)}
        if record.exc_info:
            event["exc_info"] = record.exc_info
        if _Output.lines is not None:
            _Output.lines.put(_render(None, record.levelname.lower(), event))


def _render(_: WrappedLogger, method: str, event: EventDict) -> bytes:
    """Render one line. Fields and their order are the guide's."""
    if event.get("exc_info"):
        event = structlog.processors.format_exc_info(None, method, event)
    line: dict[str, Any] = {
        "timestamp": _now(),
        "level": _LEVEL_NAMES.get(method) or method.upper(),
        "component": _Output.component,
        "event": event.pop("event", ""),
    }
    line |= {key: value for key, value in event.items() if key not in line}
    try:
        if _Output.readable is not None:
            return f"{_Output.readable(None, method, dict(line))}\n".encode("utf-8", "backslashreplace")
        return _json(line) + b"\n"
    except Exception as error:  # a value that cannot be rendered must not raise in the caller
        basics = {key: line[key] for key in ("timestamp", "level", "component", "event")}
        return json.dumps({**basics, "log_error": type(error).__name__}, default=str).encode() + b"\n"


def _now() -> str:
    """RFC 3339 with microseconds; everything but these is formatted once a second."""
    seconds, micros = divmod(time.time_ns() // 1000, 1_000_000)
    if _Output.second != seconds:
        _Output.second, _Output.timestamp = seconds, datetime.fromtimestamp(seconds, UTC).isoformat()[:19]
    return f"{_Output.timestamp}.{micros:06d}Z"


def _json(line: Mapping[str, Any]) -> bytes:
    try:
        return to_json(line, fallback=repr, inf_nan_mode="strings")
    except (ValueError, TypeError):  # invalid Unicode, or bytes that are not text
        return json.dumps(line, default=repr).encode()
