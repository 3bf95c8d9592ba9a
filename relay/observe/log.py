"""Logs: one JSON object a line, or a readable form on a terminal.

Fields are the guide's: timestamp, level, component, event, then what the event says. `event` is a stable word
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
_WORDS = {"warn": "WARN", "warning": "WARN", "exception": "ERROR"}
"""Method of a logger → level, where that is not its name."""


class _Output:
    """Where the lines of this process go, and in which form."""

    lines: Lines | None = None
    component = ""
    readable: structlog.dev.ConsoleRenderer | None = None
    second = 0
    until_seconds = ""


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
        level: one of LEVELS; libraries are kept at warnings unless it is `debug`.
        component: the program's name in each line.
        readable: None means: readable on a terminal, JSON elsewhere.
        max_bytes: what may wait for a reader; past it lines are dropped, and counted.
    """
    out = stream or sys.stderr
    if readable is None:
        readable = out.isatty()
    close()
    _Output.component = component
    _Output.readable = structlog.dev.ConsoleRenderer(colors=out.isatty()) if readable else None
    _Output.lines = Lines(out, max_bytes=max_bytes)
    root = logging.getLogger()
    root.handlers[:] = [_Foreign()]
    root.setLevel(LEVELS[level])
    for name in _LIBRARIES:
        logging.getLogger(name).setLevel(logging.NOTSET if level == "debug" else logging.WARNING)
    # aiohttp logs what peers send wrong as errors of ours, with a traceback; our own errors are logged where they happen.
    logging.getLogger("aiohttp.server").setLevel(logging.DEBUG if level == "debug" else logging.CRITICAL)
    structlog.configure(
        processors=[_rendered],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=lambda *_: _Putting(),
        cache_logger_on_first_use=True,
    )


def say(text: str) -> None:
    """A line for people, as it is, behind what was logged before it; it waits for a reader no more than `close` does."""
    if _Output.lines is not None:
        _Output.lines.put(f"{text}\n".encode("utf-8", "backslashreplace"))


def close() -> None:
    """Write what waits, and end; `configure` begins anew."""
    if _Output.lines is not None:
        _Output.lines.close()
        _Output.lines = None


def dropped() -> int:
    """Lines that were dropped because nobody read them in time; for the metric."""
    return _Output.lines.dropped if _Output.lines is not None else 0


def get(name: str) -> structlog.typing.FilteringBoundLogger:
    """The logger of a module. Cheap enough for events, not for every heartbeat."""
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger(name)
    return logger


def enabled(level: str) -> bool:
    """Whether lines of this level are written: for places where asking the logger itself would cost too much."""
    return logging.getLogger().isEnabledFor(LEVELS[level])


class _Putting:
    """The logger at the end: takes rendered lines."""

    def put(self, line: bytes) -> None:
        if _Output.lines is not None:
            _Output.lines.put(line)

    debug = info = warning = error = critical = msg = put


class _Foreign(logging.Handler):
    """Lines of libraries."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            event: dict[str, Any] = {"event": record.getMessage()}
        except Exception as error:  # who logs must not suffer for a format that does not fit
            event = {"event": str(record.msg), "log_error": repr(error)}
        if record.exc_info:
            event["exc_info"] = record.exc_info
        if _Output.lines is not None:
            _Output.lines.put(_rendered(None, record.levelname.lower(), event))


def _rendered(_: WrappedLogger, method: str, event: EventDict) -> bytes:
    """One line. Fields and their order are the guide's."""
    if event.get("exc_info"):
        event = structlog.processors.format_exc_info(None, method, event)
    line: dict[str, Any] = {
        "timestamp": _now(),
        "level": _WORDS.get(method) or method.upper(),
        "component": _Output.component,
        "event": event.pop("event", ""),
    }
    line |= {key: value for key, value in event.items() if key not in line}
    try:
        if _Output.readable is not None:
            return f"{_Output.readable(None, method, dict(line))}\n".encode("utf-8", "backslashreplace")
        return _json(line) + b"\n"
    except Exception as error:  # a value that cannot be shown: who logs must not suffer for it
        shown = {key: line[key] for key in ("timestamp", "level", "component", "event")}
        return json.dumps({**shown, "log_error": type(error).__name__}, default=str).encode() + b"\n"


def _now() -> str:
    """RFC 3339 with microseconds; what does not change within a second is made once."""
    seconds, micros = divmod(time.time_ns() // 1000, 1_000_000)
    if _Output.second != seconds:
        _Output.second, _Output.until_seconds = seconds, datetime.fromtimestamp(seconds, UTC).isoformat()[:19]
    return f"{_Output.until_seconds}.{micros:06d}Z"


def _json(line: Mapping[str, Any]) -> bytes:
    try:
        return to_json(line, fallback=repr, inf_nan_mode="strings")
    except (ValueError, TypeError):  # text that is no Unicode, or bytes that are no text
        return json.dumps(line, default=repr).encode()
