from relay.opamp import capabilities


def test_bits_have_protocol_names_and_unknown_bits_are_kept() -> None:
    assert capabilities.names(0x1003) == ("ReportsStatus", "AcceptsRemoteConfig", "ReportsRemoteConfig")
    assert capabilities.names(0x100000) == ("0x100000",)
    assert capabilities.names(0) == ()


def test_server_capabilities() -> None:
    assert capabilities.SERVER == 0x1F
