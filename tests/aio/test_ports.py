from __future__ import annotations

import socket

import pytest

from relay.aio.ports import obstacle, opening
from relay.errors import Unopened


def test_a_taken_port_names_its_setting_and_its_flag() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        port = taken.getsockname()[1]
        words = (
            f"127.0.0.1:{port}: address already in use by another process: set server.api.endpoint, or --api HOST:PORT"
        )
        with pytest.raises(Unopened, match=words), opening("server.api.endpoint", "--api", "127.0.0.1", port):
            raise RuntimeError("whatever the server said")


def test_the_port_of_a_collector_s_own_metrics_is_said() -> None:
    with (
        pytest.raises(Unopened, match="an OpenTelemetry Collector takes 8888 for its own metrics"),
        opening("telemetry.metrics.endpoint", "--metrics", "192.0.2.1", 8888),
    ):
        raise OSError("no")


def test_what_is_in_the_way() -> None:
    assert obstacle("192.0.2.1", 1) == "not an address of this machine"
    assert obstacle("127.0.0.1", 0) is None
    with opening("a", "--a", "127.0.0.1", 0):
        pass
