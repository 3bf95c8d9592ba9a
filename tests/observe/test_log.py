import io
import json
import logging
import os
from collections.abc import Iterator

import pytest
import structlog

from relay.observe import log


def test_lines_are_json_in_the_format_of_the_guide() -> None:
    out = io.StringIO()
    log.configure(level="info", component="opamp-server", stream=out, readable=False)
    log.get("x").info("agent_connected", agent_id="agent-001", duration_ms=123)
    log.get("x").debug("not_shown")
    logging.getLogger("elsewhere").error("plain %s", "words")
    log.close()
    first, second = (json.loads(line) for line in out.getvalue().splitlines())
    assert list(first) == ["timestamp", "level", "component", "event", "agent_id", "duration_ms"]
    assert (first["level"], first["component"], first["event"]) == ("INFO", "opamp-server", "agent_connected")
    assert first["timestamp"].endswith("Z")
    assert (second["level"], second["event"]) == ("ERROR", "plain words")
    assert log.enabled("info")
    assert not log.enabled("debug")


def test_plain_line_follows_earlier_log_lines() -> None:
    out = io.StringIO()
    log.configure(level="info", component="c", stream=out, readable=False)
    log.get("x").info("starting")
    log.say("c: the port is taken")
    log.close()
    first, second = out.getvalue().splitlines()
    assert (json.loads(first)["event"], second) == ("starting", "c: the port is taken")


def test_libraries_are_quiet_unless_debugging() -> None:
    out = io.StringIO()
    log.configure(level="info", component="c", stream=out, readable=False)
    logging.getLogger("grpc").info("noise")
    log.close()
    assert out.getvalue() == ""
    log.configure(level="debug", component="c", stream=out, readable=False)
    logging.getLogger("grpc").info("noise")
    log.close()
    assert "noise" in out.getvalue()


def test_terminal_gets_a_readable_format() -> None:
    out = io.StringIO()
    log.configure(level="warn", component="c", stream=out, readable=True)
    log.get("x").warning("link_down", error="gone")
    log.close()
    assert "link_down" in out.getvalue()
    assert not out.getvalue().startswith("{")


def test_any_event_value_makes_a_line() -> None:
    out = io.StringIO()
    log.configure(level="info", component="c", stream=out, readable=False)
    subject = log.get("x")
    subject.info("odd", words="\ud800", content=b"\xff", number=float("nan"), kind={"a"})
    try:
        raise ValueError("no")
    except ValueError:
        subject.exception("failed")
        logging.getLogger("elsewhere").exception("failed too")
    log.close()
    odd, failed, foreign = (json.loads(line) for line in out.getvalue().splitlines())
    assert odd["event"] == "odd"
    assert (failed["level"], "ValueError: no" in failed["exception"]) == ("ERROR", True)
    assert (foreign["event"], "ValueError: no" in foreign["exception"]) == ("failed too", True)


def test_stalled_reader_loses_only_lines() -> None:
    unread, stream = os.pipe()
    with os.fdopen(stream, "w") as out:
        log.configure(level="info", component="c", stream=out, readable=False, max_bytes=10_000)
        for _ in range(2000):
            log.get("x").info("storm", words="x" * 100)
        assert log.dropped() > 0
        os.close(unread)  # otherwise close would wait for a reader
        log.close()
    assert log.dropped() == 0, "of the next one"


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    yield
    log.close()
    logging.getLogger().handlers.clear()
    structlog.reset_defaults()


def test_unprintable_values_do_not_raise() -> None:
    class Odd:
        def __repr__(self) -> str:
            raise RuntimeError("no words")

    for readable in (False, True):
        out = io.StringIO()
        log.configure(level="info", component="c", stream=out, readable=readable)
        log.get("x").info("odd", what=Odd(), level="mine")
        log.get("x").info("path", name="\udcff")
        logging.getLogger("uvicorn").warning("%d", "a")
        log.close()
        assert out.getvalue().count("\n") == 3, out.getvalue()
        assert "log_error" in out.getvalue()
