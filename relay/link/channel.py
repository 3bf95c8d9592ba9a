"""Dialling and listening, the one place for both ends: message sizes, and keep-alives that notice a cut cable in seconds."""

from __future__ import annotations

import grpc.aio

MAX_MESSAGE_BYTES = 256 << 20
"""A report is about 1 MiB, but one agent's state and one effective config may each be as large as an agent's message."""

_COMMON: list[tuple[str, int]] = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    # Of the two time-outs the longer one counts, and this one is a minute unless it is said.
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
    """A channel to a control plane; it connects when it is first used, and again whenever it has to.

    Args:
        own_connection: not the one that other channels to the same place share.
    """
    options = [*CLIENT, ("grpc.use_local_subchannel_pool", 1)] if own_connection else CLIENT
    return grpc.aio.insecure_channel(endpoint, options=options)


def server() -> grpc.aio.Server:
    """A server for nodes; `listen` gives it its port."""
    return grpc.aio.server(options=SERVER)


def listen(server: grpc.aio.Server, endpoint: str) -> int:
    """Give a server that has not started its port. Returns which it is.

    Raises:
        OSError: the endpoint cannot be bound.
    """
    try:
        return server.add_insecure_port(endpoint)
    except RuntimeError:
        raise OSError(f"{endpoint} cannot be opened: address already in use, or not of this machine") from None
