from relay.ids import ConfigHash
from relay.opamp.offer import encode
from relay.opamp.outbox import Outbox
from relay.opamp.packages import PackagesOffer
from relay.pb.opamp.v1 import opamp_pb2 as pb


def test_latest_of_each_kind_is_sent_once() -> None:
    outbox = Outbox()
    assert not outbox
    outbox.offer = encode(ConfigHash(b"old"), {"": (b"1", "")}, ())
    outbox.offer = encode(ConfigHash(b"new"), {"": (b"2", "")}, ())
    outbox.full_state = True
    outbox.new_uid = b"n" * 16
    outbox.packages = PackagesOffer(b"set", (), (), ())
    assert outbox

    def field(offer: PackagesOffer) -> bytes:
        available = pb.PackagesAvailable(all_packages_hash=offer.hash)
        return pb.ServerToAgent(packages_available=available).SerializeToString()

    message = pb.ServerToAgent.FromString(outbox.take(field))
    assert message.packages_available.all_packages_hash == b"set"
    assert message.remote_config.config_hash == b"new"
    assert message.flags == pb.ServerToAgentFlags_ReportFullState
    assert message.agent_identification.new_instance_uid == b"n" * 16
    assert not outbox
    assert outbox.take(field) == b""


def test_component_request_alone_and_with_full_state() -> None:
    outbox = Outbox()
    outbox.components = True
    alone = pb.ServerToAgent.FromString(outbox.take(lambda _: b""))
    assert alone.flags == pb.ServerToAgentFlags_ReportAvailableComponents
    outbox.components = outbox.full_state = True
    both = pb.ServerToAgent.FromString(outbox.take(lambda _: b""))
    assert both.flags == pb.ServerToAgentFlags_ReportAvailableComponents | pb.ServerToAgentFlags_ReportFullState
