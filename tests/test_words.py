from __future__ import annotations

from relay.policy.model import ConfigAssignment
from relay.settings.programs import NodeSettings
from relay.words import fields_at, suggestion


def test_close_to_suggests_similar_words() -> None:
    assert suggestion("configtemplat", ["ConfigTemplate", "RolloutStrategy"]) == "; did you mean ConfigTemplate?"
    assert suggestion("zebra", ["ConfigTemplate"]) == ""
    assert suggestion("x", []) == ""


def test_fields_at_a_path() -> None:
    assert "target_selector" in fields_at(ConfigAssignment, ("spec",))
    assert "labels" in fields_at(ConfigAssignment, ("spec", "target_selector"))
    assert "endpoint" in fields_at(NodeSettings, ("server", "websocket"))
    assert "server" in fields_at(NodeSettings, ())
