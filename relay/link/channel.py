"""Dialling and listening, for both ends: message sizes, and keep-alives that detect a cut cable within seconds."""

from __future__ import annotations

import grpc.aio

MAX_MESSAGE_BYTES = 256 << 20
"""A report is about 1 MiB, but a single state or effective config may be as large as an agent's message."""

_COMMON: list[tuple[str, int]] = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    # The longer of the two timeouts counts, and this one defaults to a minute.
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
]

CLIENT: list[tuple[str, int]] = [
    *_COMMON,
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),
]

SERVER: list[tuple[str, int]] = [
    *_COMMON,
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.so_reuseport", 0),
]


def dial(endpoint: str, *, own_connection: bool = False) -> grpc.aio.Channel:
    """Open a channel to a control plane. It connects on first use and reconnects as needed.

    Args:
        endpoint: HOST:PORT.
        own_connection: do not share the connection of other channels to the same endpoint.
    """
    options = [*CLIENT, ("grpc.use_local_subchannel_pool", 1)] if own_connection else CLIENT
    return grpc.aio.insecure_channel(endpoint, options=options)


def server() -> grpc.aio.Server:
    """Create a server for nodes; `listen` binds its port."""
    return grpc.aio.server(options=SERVER)


def listen(server: grpc.aio.Server, endpoint: str) -> int:
    """Bind a server that has not started yet. Returns the port.

    Raises:
        OSError: the endpoint cannot be bound.
    """
    try:
        return server.add_insecure_port(endpoint)
    except RuntimeError:
        raise OSError(
            f"{endpoint} cannot be opened: address already in use, or not an address of this machine"
        ) from None
