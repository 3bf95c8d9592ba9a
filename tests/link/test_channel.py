from relay.link import channel


def test_both_ends_notice_a_cut_cable_and_allow_the_other_to() -> None:
    client, server = dict(channel.CLIENT), dict(channel.SERVER)
    assert client["grpc.keepalive_time_ms"] >= server["grpc.http2.min_recv_ping_interval_without_data_ms"]
    assert client["grpc.max_receive_message_length"] == server["grpc.max_send_message_length"]
