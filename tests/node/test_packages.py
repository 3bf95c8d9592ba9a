import pytest

from relay.node.packages import Packages
from relay.opamp.packages import PackagesOffer


def test_nothing_is_served_yet() -> None:
    packages = Packages()
    assert not packages.reachable("http://here")
    assert not packages.available(PackagesOffer(b"", (), (), ()))
    with pytest.raises(NotImplementedError):
        packages.field(PackagesOffer(b"", (), (), ()), "")
