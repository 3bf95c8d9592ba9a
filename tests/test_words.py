from __future__ import annotations

from relay.policy.model import ConfigAssignment
from relay.settings.programs import NodeSettings
from relay.words import close_to, fields_at


def test_close_to_suggests_similar_words() -> None:
    assert close_to("configtemplat", ["ConfigTemplate", "RolloutStrategy"]) == "; did you mean ConfigTemplate?"
    assert close_to("zebra", ["ConfigTemplate"]) == ""
    assert close_to("x", []) == ""


def test_fields_at_a_path() -> None:
    assert "target_selector" in fields_at(ConfigAssignment, ("spec",))
    assert "labels" in fields_at(ConfigAssignment, ("spec", "target_selector"))
    assert "endpoint" in fields_at(NodeSettings, ("server", "websocket"))
    assert "server" in fields_at(NodeSettings, ())
