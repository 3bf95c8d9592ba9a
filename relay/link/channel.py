"""Dialling and listening, for both ends: message sizes, and keep-alives that detect a cut cable within seconds."""

from __future__ import annotations

from collections.abc import Callable

import grpc
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


Credentials = Callable[[], grpc.ChannelCredentials | None]
"""Returns the credentials of the next connection: certificates are renewed. None for a plain connection."""


def plain() -> grpc.ChannelCredentials | None:
    """Connections without TLS."""
    return None


def dial(
    endpoint: str, credentials: grpc.ChannelCredentials | None = None, *, own_connection: bool = False
) -> grpc.aio.Channel:
    """Open a channel to a control plane. It connects on first use and reconnects as needed.

    Args:
        endpoint: HOST:PORT.
        credentials: for TLS; None for a plain connection.
        own_connection: do not share the connection of other channels to the same endpoint.
    """
    options = [*CLIENT, ("grpc.use_local_subchannel_pool", 1)] if own_connection else CLIENT
    if credentials is None:
        return grpc.aio.insecure_channel(endpoint, options=options)
    return grpc.aio.secure_channel(endpoint, credentials, options=options)


def server() -> grpc.aio.Server:
    """Create a server for nodes; `listen` binds its port."""
    return grpc.aio.server(options=SERVER)


def listen(server: grpc.aio.Server, endpoint: str, credentials: grpc.ServerCredentials | None = None) -> int:
    """Bind a server that has not started yet. Returns the port.

    Args:
        credentials: for TLS; None for plain connections.

    Raises:
        OSError: the endpoint cannot be bound.
    """
    try:
        if credentials is None:
            return server.add_insecure_port(endpoint)
        return server.add_secure_port(endpoint, credentials)
    except RuntimeError:
        raise OSError(
            f"{endpoint} cannot be opened: address already in use, or not an address of this machine"
        ) from None
