from __future__ import annotations

import socket

import pytest

from relay.aio.ports import bind_problem, explain_bind_errors
from relay.errors import PortError


def test_port_in_use_error_names_setting_and_flag() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        port = taken.getsockname()[1]
        words = (
            f"127.0.0.1:{port}: address already in use by another process: set server.api.endpoint, or --api HOST:PORT"
        )
        with (
            pytest.raises(PortError, match=words),
            explain_bind_errors("server.api.endpoint", "--api", "127.0.0.1", port),
        ):
            raise RuntimeError("whatever the server said")


def test_port_in_use_error_mentions_collector_metrics() -> None:
    with (
        pytest.raises(PortError, match="an OpenTelemetry Collector takes 8888 for its own metrics"),
        explain_bind_errors("telemetry.metrics.endpoint", "--metrics", "192.0.2.1", 8888),
    ):
        raise OSError("no")


def test_obstacle() -> None:
    assert bind_problem("192.0.2.1", 1) == "not an address of this machine"
    assert bind_problem("127.0.0.1", 0) is None
    with explain_bind_errors("a", "--a", "127.0.0.1", 0):
        pass
