"""Lines on their way to a stream: a thread writes them, so that who logs never waits for who reads.

A reader that stalls (a full pipe, a terminal that is held) costs lines, which are counted, and nothing else.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from typing import TextIO

MAX_BYTES = 4 << 20
"""What may wait; past it lines are dropped."""
_GATHER_S = 0.05
"""Lines of one burst are written together."""
_END_S = 2.0
"""How long the end of the program waits for a reader."""


class Lines:
    """Writes to one stream. Any thread may `put`. `close` at the end; the end of the program does it by itself."""

    def __init__(self, stream: TextIO, *, max_bytes: int = MAX_BYTES) -> None:
        self._stream = stream
        self._descriptor = _descriptor_of(stream)
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        """Of these, and of those that are being written."""
        self._awake = threading.Event()
        self._ended = False
        self.dropped = 0
        """Lines that nobody will read."""
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def put(self, line: bytes) -> None:
        """One line, its end included. Never waits."""
        with self._lock:
            if self._waiting_bytes > self._max_bytes:
                self.dropped += 1
                return
            self._waiting.append(line)
            self._waiting_bytes += len(line)
        if not self._awake.is_set():
            self._awake.set()

    def close(self) -> None:
        """Write what waits, if somebody reads it within seconds, and end."""
        atexit.unregister(self.close)
        self._ended = True
        self._awake.set()
        self._thread.join(_END_S)

    def _run(self) -> None:
        while not (self._ended and not self._waiting):
            self._awake.wait()
            if not self._ended:
                time.sleep(_GATHER_S)
            self._awake.clear()
            with self._lock:
                lines, self._waiting = self._waiting, []
            content, lost = b"".join(lines), 0
            try:
                self._write(content)
            except (OSError, ValueError):  # whatever becomes of the stream, the program goes on
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
            except BlockingIOError:  # somebody has made our standard error non-blocking
                time.sleep(_GATHER_S)


def _descriptor_of(stream: TextIO) -> int | None:
    try:
        return stream.fileno()
    except (OSError, ValueError):  # of memory
        return None
