from __future__ import annotations

import pytest

from relay.link import channel


def test_keepalive_settings_of_both_ends_agree() -> None:
    client, server = dict(channel.CLIENT), dict(channel.SERVER)
    assert client["grpc.keepalive_time_ms"] >= server["grpc.http2.min_recv_ping_interval_without_data_ms"]
    assert client["grpc.max_receive_message_length"] == server["grpc.max_send_message_length"]


async def test_listen_opens_a_port_or_fails_if_in_use() -> None:
    first, second = channel.server(), channel.server()
    port = channel.listen(first, "127.0.0.1:0")
    await first.start()
    with pytest.raises(OSError, match="cannot be opened: address already in use"):
        channel.listen(second, f"127.0.0.1:{port}")
    async with channel.dial(f"127.0.0.1:{port}", own_connection=True) as dialled:
        await dialled.channel_ready()
    await first.stop(None)
