from __future__ import annotations

import io
import os
import time

import pytest

from relay.observe.lines import Lines


def test_lines_are_written_in_order_and_flushed_at_close() -> None:
    out = io.StringIO()
    lines = Lines(out)
    for i in range(1000):
        lines.put(f"{i}\n".encode())
    lines.close()
    assert out.getvalue().split() == [str(i) for i in range(1000)]
    assert lines.dropped == 0


def test_single_line_is_written_soon() -> None:
    unread, written = os.pipe()
    with os.fdopen(written, "w") as stream:
        lines = Lines(stream)
        lines.put(b"here\n")
        assert os.read(unread, 100) == b"here\n"
        lines.close()
    os.close(unread)


def test_queue_is_bounded_and_dropped_lines_are_counted() -> None:
    unread, written = os.pipe()
    with os.fdopen(written, "w") as stream:
        lines = Lines(stream, max_bytes=1000)
        while not lines.dropped:
            lines.put(b"x" * 999 + b"\n")
            time.sleep(0.0001)
        held = os.read(unread, 1 << 20)
        assert held.endswith(b"x\n") or held.count(b"\n") >= 1
        os.close(unread)
        lines.close()


def test_closed_stream_is_no_failure() -> None:
    unread, written = os.pipe()
    os.close(unread)
    with os.fdopen(written, "w") as stream:
        lines = Lines(stream)
        lines.put(b"x\n")
        lines.close()
        assert lines.dropped == 1


def test_non_blocking_stream_is_written() -> None:
    unread, written = os.pipe()
    os.set_blocking(written, False)
    with os.fdopen(written, "w") as stream:
        lines = Lines(stream)
        content = b"x" * 100_000 + b"\n"
        lines.put(content)
        found = b""
        while len(found) < len(content):
            found += os.read(unread, 1 << 16)
        lines.close()
    os.close(unread)
    assert found == content


@pytest.mark.parametrize("closed_twice", [False, True])
def test_nothing_is_written_after_close(closed_twice: bool) -> None:
    out = io.StringIO()
    lines = Lines(out)
    lines.close()
    if closed_twice:
        lines.close()
    lines.put(b"late\n")
    assert out.getvalue() == ""
