import pytest
from pydantic import TypeAdapter, ValidationError

from relay.settings import parts


def test_endpoints_split_and_detect_loopback() -> None:
    assert parts.split_endpoint("127.0.0.1:80") == ("127.0.0.1", 80)
    assert parts.split_endpoint("[::1]:80") == ("::1", 80)
    for local in ("127.0.0.1:1", "localhost:1", "[::1]:1", "127.9.9.9:1"):
        assert parts.is_loopback(local)
    for open_ in ("0.0.0.0:1", "10.0.0.1:1", "[::]:1", "example.com:1"):
        assert not parts.is_loopback(open_)


@pytest.mark.parametrize("text", ["", "80", ":80", "host", "host:", "host:x", "host:70000", 5])
def test_invalid_endpoints(text: object) -> None:
    with pytest.raises(ValidationError):
        parts.Listener.model_validate({"endpoint": text})


def test_sizes_and_durations() -> None:
    size, duration = TypeAdapter(parts.Size), TypeAdapter(parts.Duration)
    assert size.validate_python("64MiB") == 64 << 20
    assert size.validate_python(512) == 512
    assert duration.validate_python("1h30m") == 5400
    assert duration.validate_python(0.5) == 0.5
    for adapter, bad in ((size, "64 parsecs"), (size, 0), (duration, "soon"), (duration, True), (duration, -1)):
        with pytest.raises(ValidationError):
            adapter.validate_python(bad)


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError):
        parts.Logs().level = "debug"
