import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.errors import Malformed
from relay.opamp import frame


@given(st.binary(max_size=300))
def test_frame_round_trip(body: bytes) -> None:
    assert frame.decode(frame.encode(body)) == body


def test_overlong_zero_header_is_accepted() -> None:
    assert frame.decode(b"\x80\x00rest") == b"rest"


@pytest.mark.parametrize("message", [b"", b"\x80", b"\x80" * 11, b"\x01x", b"\x0a\x10legacy", b"\x81\x00x"])
def test_other_headers_are_malformed(message: bytes) -> None:
    with pytest.raises(Malformed):
        frame.decode(message)


@given(st.binary(max_size=30))
def test_only_documented_errors_are_raised(message: bytes) -> None:
    with contextlib.suppress(Malformed):
        frame.decode(message)
