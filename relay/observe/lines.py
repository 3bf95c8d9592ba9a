"""Log lines, written to a stream by a thread, so that logging never waits for the reader.

If the reader stalls (a full pipe, a paused terminal), lines are dropped and counted; nothing else suffers.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from typing import TextIO

MAX_BYTES = 4 << 20
"""Bound of the queue; beyond it lines are dropped."""
_GATHER_S = 0.05
"""How long lines of a burst gather before they are written together."""
_CLOSE_TIMEOUT_S = 2.0
"""How long the program's exit waits for a reader."""


class Lines:
    """Writes to one stream. `put` is thread-safe. The program's exit calls `close` if nobody else did."""

    def __init__(self, stream: TextIO, *, max_bytes: int = MAX_BYTES) -> None:
        self._stream = stream
        self._descriptor = _descriptor_of(stream)
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        """Includes the lines that are being written now."""
        self._awake = threading.Event()
        self._closed = False
        self.dropped = 0
        """Lines that were not written."""
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def put(self, line: bytes) -> None:
        """Queue one line, which includes its newline. Never waits."""
        with self._lock:
            if self._waiting_bytes > self._max_bytes:
                self.dropped += 1
                return
            self._waiting.append(line)
            self._waiting_bytes += len(line)
        if not self._awake.is_set():
            self._awake.set()

    def close(self) -> None:
        """Write the queue, as far as the reader takes it within seconds, and stop."""
        atexit.unregister(self.close)
        self._closed = True
        self._awake.set()
        self._thread.join(_CLOSE_TIMEOUT_S)

    def _run(self) -> None:
        while not (self._closed and not self._waiting):
            self._awake.wait()
            if not self._closed:
                time.sleep(_GATHER_S)
            self._awake.clear()
            with self._lock:
                lines, self._waiting = self._waiting, []
            content, lost = b"".join(lines), 0
            try:
                self._write(content)
            except (OSError, ValueError):  # a broken stream must not stop the program
                lost = len(lines)
            with self._lock:
                self._waiting_bytes -= len(content)
                self.dropped += lost

    def _write(self, content: bytes) -> None:
        if self._descriptor is None:
            self._stream.write(content.decode("utf-8", "replace"))
            self._stream.flush()
            return
        view = memoryview(content)
        while view:
            try:
                view = view[os.write(self._descriptor, view) :]
            except BlockingIOError:  # somebody made our standard error non-blocking
                time.sleep(_GATHER_S)


def _descriptor_of(stream: TextIO) -> int | None:
    try:
        return stream.fileno()
    except (OSError, ValueError):  # an in-memory stream
        return None
