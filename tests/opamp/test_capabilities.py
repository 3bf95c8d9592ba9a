from relay.opamp import capabilities


def test_bits_have_the_protocol_s_names_and_unknown_ones_are_kept() -> None:
    assert capabilities.names(0x1003) == ("ReportsStatus", "AcceptsRemoteConfig", "ReportsRemoteConfig")
    assert capabilities.names(0x100000) == ("0x100000",)
    assert capabilities.names(0) == ()


def test_the_server_offers_what_it_does() -> None:
    assert capabilities.SERVER == 0x1F
