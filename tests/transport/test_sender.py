from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from relay.transport.sender import Job, Sender

CONTENT = bytes(range(256)) * 20_000


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    return path


class Desk:
    """Senders that end with the test."""

    def __init__(self) -> None:
        self.senders: list[Sender] = []

    def sender(self, *, stall_s: float = 5.0, **bounds: Any) -> Sender:
        sender = Sender(stall_s=stall_s, **{"total": None, "each": None, **bounds})
        sender.start()
        self.senders.append(sender)
        return sender


@pytest.fixture
def desk() -> Iterator[Desk]:
    made = Desk()
    yield made
    for sender in made.senders:
        sender.stop()


def read_all(connection: socket.socket) -> bytes:
    parts = []
    connection.settimeout(10)
    while part := connection.recv(1 << 16):
        parts.append(part)
    return b"".join(parts)


def until(check: Any) -> None:
    deadline = time.monotonic() + 10
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_head_and_range_arrive_and_the_connection_ends(desk: Desk, file: Path) -> None:
    sender = desk.sender()
    ours, theirs = socket.socketpair()
    sender.submit(Job(ours, b"head\n", file, 10, 1_000_000))
    assert read_all(theirs) == b"head\n" + CONTENT[10:1_000_010]
    until(lambda: sender.done == 1)
    assert (sender.sent_bytes, sender.active, sender.broken) == (1_000_000, 0, 0)
    theirs.close()


def test_many_downloads_at_once(desk: Desk, file: Path) -> None:
    sender = desk.sender()
    pairs = [socket.socketpair() for _ in range(50)]
    for ours, _ in pairs:
        sender.submit(Job(ours, b"", file, 0, 100_000))
    for _, theirs in pairs:
        assert read_all(theirs) == CONTENT[:100_000]
        theirs.close()


def test_unread_download_is_closed_and_delays_no_other(desk: Desk, file: Path) -> None:
    sender = desk.sender(stall_s=0.5)
    stuck, silent = socket.socketpair()
    sender.submit(Job(stuck, b"", file, 0, len(CONTENT)))
    ours, theirs = socket.socketpair()
    sender.submit(Job(ours, b"", file, 0, len(CONTENT)))
    assert read_all(theirs) == CONTENT
    until(lambda: sender.broken == 1)
    assert sender.active == 0
    silent.close()
    theirs.close()


def test_lost_client_or_file_ends_only_its_download(desk: Desk, file: Path, tmp_path: Path) -> None:
    sender = desk.sender()
    ours, theirs = socket.socketpair()
    theirs.close()
    sender.submit(Job(ours, b"head", file, 0, len(CONTENT)))
    lost, other = socket.socketpair()
    sender.submit(Job(lost, b"", tmp_path / "none", 0, 1))
    short, reader = socket.socketpair()
    sender.submit(Job(short, b"", file, len(CONTENT) - 10, 1_000))
    until(lambda: sender.broken == 3)
    assert len(read_all(reader)) == 10
    for connection in (other, reader):
        connection.close()


@pytest.mark.parametrize("bounds", [{"each": 1_000_000}, {"total": 1_000_000}])
def test_bandwidth_is_bounded(desk: Desk, file: Path, bounds: dict[str, int]) -> None:
    sender = desk.sender(**bounds)
    began = time.monotonic()
    ours, theirs = socket.socketpair()
    sender.submit(Job(ours, b"", file, 0, 1_500_000))
    assert len(read_all(theirs)) == 1_500_000
    # The first second's bytes may come at once.
    assert time.monotonic() - began > 0.3
    theirs.close()


def test_stop_ends_running_downloads(file: Path) -> None:
    sender = Sender(stall_s=60, total=None, each=None)
    sender.start()
    ours, theirs = socket.socketpair()
    sender.submit(Job(ours, b"", file, 0, len(CONTENT)))
    until(lambda: sender.sent_bytes > 0)
    sender.stop()
    assert len(read_all(theirs)) < len(CONTENT)
    theirs.close()


def test_pending_client_data_does_not_cut_the_answer(desk: Desk, file: Path) -> None:
    sender = desk.sender()
    with socket.create_server(("127.0.0.1", 0)) as server:
        theirs = socket.create_connection(server.getsockname())
        ours, _ = server.accept()
    sender.submit(Job(ours, b"", file, 0, len(CONTENT)))
    theirs.sendall(b"GET / HTTP/1.1\r\n\r\n" * 1000)
    time.sleep(0.3)
    assert read_all(theirs) == CONTENT
    assert sender.active == 0
    theirs.close()
    until(lambda: not sender._jobs)


def test_very_slow_reader_is_closed(desk: Desk, file: Path) -> None:
    sender = desk.sender(stall_s=1.0)
    ours, theirs = socket.socketpair()
    sender.submit(Job(ours, b"", file, 0, len(CONTENT)))
    theirs.settimeout(1)
    began = time.monotonic()
    with contextlib.suppress(OSError):
        while not sender.broken and time.monotonic() - began < 10:
            theirs.recv(200)
            time.sleep(0.2)
    assert sender.broken == 1
    theirs.close()
