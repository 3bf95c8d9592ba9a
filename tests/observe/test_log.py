import io
import json
import logging

from relay.observe import log


def test_lines_are_json_in_the_guide_s_shape() -> None:
    out = io.StringIO()
    log.configure(level="info", component="opamp-server", stream=out, readable=False)
    log.get("x").info("agent_connected", agent_id="agent-001", duration_ms=123)
    log.get("x").debug("not_shown")
    logging.getLogger("elsewhere").error("plain %s", "words")
    first, second = (json.loads(line) for line in out.getvalue().splitlines())
    assert list(first) == ["timestamp", "level", "component", "event", "agent_id", "duration_ms"]
    assert (first["level"], first["component"], first["event"]) == ("INFO", "opamp-server", "agent_connected")
    assert first["timestamp"].endswith("Z")
    assert (second["level"], second["event"]) == ("ERROR", "plain words")
    assert log.enabled("info")
    assert not log.enabled("debug")


def test_libraries_are_quiet_unless_debugging() -> None:
    out = io.StringIO()
    log.configure(level="info", component="c", stream=out, readable=False)
    logging.getLogger("grpc").info("noise")
    assert out.getvalue() == ""
    log.configure(level="debug", component="c", stream=out, readable=False)
    logging.getLogger("grpc").info("noise")
    assert "noise" in out.getvalue()


def test_a_terminal_gets_a_readable_form() -> None:
    out = io.StringIO()
    log.configure(level="warn", component="c", stream=out, readable=True)
    log.get("x").warning("link_down", error="gone")
    assert "link_down" in out.getvalue()
    assert not out.getvalue().startswith("{")
