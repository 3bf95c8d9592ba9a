from __future__ import annotations

from relay.policy.model import ConfigAssignment
from relay.settings.programs import NodeSettings
from relay.words import close_to, fields_at


def test_what_is_much_like_it_may_be_meant() -> None:
    assert close_to("configtemplat", ["ConfigTemplate", "RolloutStrategy"]) == "; did you mean ConfigTemplate?"
    assert close_to("zebra", ["ConfigTemplate"]) == ""
    assert close_to("x", []) == ""


def test_the_fields_where_a_path_leads() -> None:
    assert "target_selector" in fields_at(ConfigAssignment, ("spec",))
    assert "labels" in fields_at(ConfigAssignment, ("spec", "target_selector"))
    assert "endpoint" in fields_at(NodeSettings, ("server", "websocket"))
    assert "server" in fields_at(NodeSettings, ())
