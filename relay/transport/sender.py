"""Sends files from the kernel to sockets, in a thread of its own; no byte passes through Python.

The thread waits for writable sockets and lets the kernel copy (`sendfile`). It knows nothing about HTTP or agents: a job
is a connected socket, the bytes to write first, and a part of a file.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import os
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

_SLICE_BYTES = 1 << 20
"""How much one socket gets before it is the next one's turn."""
_TICK_S = 1.0
_MIN_RATE = 4096
"""In bytes a second. A slower reader only occupies a place, unless our own rate limit slows it down."""
_LINGER_S = 5.0
"""How long to read from a finished connection. Closing with unread bytes would reset it, and data on its way would be
lost."""


@dataclass(slots=True)
class Job:
    """Sends one file to one socket."""

    connection: socket.socket
    head: bytes
    path: Path
    start: int
    length: int
    file: int = -1
    moved_at: float = 0.0
    allowance: float = 0.0
    """Bytes that the job may send now, if each job has a rate limit."""
    filled_at: float = field(default=0.0)
    lingering: bool = False
    """Everything is written."""
    watched_at: float = 0.0
    watched_bytes: int = 0
    """Bytes sent since `watched_at`."""


class Sender:
    """The sending thread. Call `start`, then `submit`; `stop` ends all jobs.

    Args:
        stall_s: a socket is closed after taking nothing for so long.
        total: bytes a second of all jobs together; None for no limit.
        each: bytes a second of one job; None for no limit.
    """

    def __init__(
        self,
        *,
        stall_s: float,
        total: int | None,
        each: int | None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stall_s = stall_s
        self._total = total
        self._each = each
        self._now = now
        self._selector = selectors.DefaultSelector()
        self._wake, self._waker = socket.socketpair()
        self._wake.setblocking(False)
        self._new: deque[Job] = deque()
        self._jobs: dict[int, Job] = {}
        self._paused: list[tuple[float, int, Job]] = []
        self._order = itertools.count()
        self._allowance = float(total or 0)
        self._filled_at = now()
        self._closing = False
        self._lingering = 0
        self._thread = threading.Thread(target=self._run, name="sender", daemon=True)
        self.sent_bytes = 0
        """File content only. Written by the thread alone."""
        self.done = 0
        self.broken = 0
        """Jobs given up because the other end left or read nothing."""

    @property
    def active(self) -> int:
        """Files that are not fully sent yet."""
        return len(self._jobs) + len(self._new) - self._lingering

    def start(self) -> None:
        """Start the thread."""
        self._selector.register(self._wake, selectors.EVENT_READ)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Send a file. The sender takes over the socket. May be called from any thread."""
        self._new.append(job)
        with contextlib.suppress(BlockingIOError):
            self._waker.send(b"\0")

    def stop(self) -> None:
        """End all jobs and join the thread. Blocks for a moment."""
        self._closing = True
        self._waker.send(b"\0")
        self._thread.join()
        self._waker.close()
        self._wake.close()
        self._selector.close()

    # ---- the thread

    def _run(self) -> None:
        check_at = self._now() + _TICK_S
        while not self._closing:
            for key, _ in self._selector.select(self._until_next()):
                if key.fileobj is self._wake:
                    with contextlib.suppress(BlockingIOError):
                        self._wake.recv(4096)
                else:
                    self._advance(key.data)
            self._take_new()
            now = self._now()
            self._resume(now)
            if now >= check_at:
                check_at = now + _TICK_S
                self._drop_stalled(now)
        for job in [*self._jobs.values(), *self._new]:
            self._close(job)

    def _until_next(self) -> float:
        if not self._paused:
            return _TICK_S
        return min(_TICK_S, max(0.0, self._paused[0][0] - self._now()))

    def _take_new(self) -> None:
        while self._new:
            job = self._new.popleft()
            try:
                job.connection.setblocking(False)
                job.file = os.open(job.path, os.O_RDONLY)
            except OSError:
                self.broken += 1
                self._close(job)
                continue
            job.moved_at = job.filled_at = job.watched_at = self._now()
            job.allowance = float(self._each or 0)
            self._jobs[job.connection.fileno()] = job
            self._selector.register(job.connection, selectors.EVENT_WRITE, job)

    def _advance(self, job: Job) -> None:
        try:
            if job.lingering:
                if not job.connection.recv(_SLICE_BYTES):
                    self._close(job)
                return
            if job.head:
                job.head = job.head[job.connection.send(job.head) :]
                if job.head:
                    return
            if job.length:
                size = self._take_allowance(job)
                if not size:
                    return
                sent = os.sendfile(job.connection.fileno(), job.file, job.start, size)
                if not sent:
                    raise OSError("the file was truncated while it was sent")
                self._count_sent(job, sent)
            if not job.length:
                self.done += 1
                job.connection.shutdown(socket.SHUT_WR)
                job.lingering, job.moved_at = True, self._now()
                self._lingering += 1
                self._selector.modify(job.connection, selectors.EVENT_READ, job)
        except BlockingIOError:
            return
        except OSError:
            self.broken += not job.lingering
            self._close(job)

    def _count_sent(self, job: Job, sent: int) -> None:
        job.start += sent
        job.length -= sent
        job.moved_at = self._now()
        self.sent_bytes += sent
        job.watched_bytes += sent
        if self._each:
            job.allowance -= sent
        if self._total:
            self._allowance -= sent

    def _take_allowance(self, job: Job) -> int:
        """How many bytes may be sent now. 0 if none; the job is then paused until some may."""
        size = min(_SLICE_BYTES, job.length)
        if not self._each and not self._total:
            return size
        now = self._now()
        wait_s = 0.0
        if self._each:
            job.allowance = min(self._each, job.allowance + (now - job.filled_at) * self._each)
            job.filled_at = now
            size = min(size, int(job.allowance))
            wait_s = max(wait_s, (min(job.length, self._each / 10) - job.allowance) / self._each)
        if self._total:
            self._allowance = min(self._total, self._allowance + (now - self._filled_at) * self._total)
            self._filled_at = now
            size = min(size, int(self._allowance))
            wait_s = max(wait_s, (min(job.length, self._total / 100) - self._allowance) / self._total)
        if wait_s > 0 or not size:
            self._selector.unregister(job.connection)
            heapq.heappush(self._paused, (now + max(wait_s, 0.001), next(self._order), job))
            return 0
        return size

    def _resume(self, now: float) -> None:
        while self._paused and self._paused[0][0] <= now:
            _, _, job = heapq.heappop(self._paused)
            if self._jobs.get(job.connection.fileno()) is job:
                job.moved_at = now
                self._selector.register(job.connection, selectors.EVENT_WRITE, job)

    def _drop_stalled(self, now: float) -> None:
        paused = {id(job) for _, _, job in self._paused}
        for job in list(self._jobs.values()):
            if job.lingering:
                if now - job.moved_at > _LINGER_S:
                    self._close(job)
            elif (id(job) not in paused and now - job.moved_at > self._stall_s) or self._is_dripping(job, now):
                self.broken += 1
                self._close(job)

    def _is_dripping(self, job: Job, now: float) -> bool:
        if self._total or self._each or now - job.watched_at < self._stall_s:
            return False
        rate = job.watched_bytes / (now - job.watched_at)
        job.watched_at, job.watched_bytes = now, 0
        return rate < _MIN_RATE

    def _close(self, job: Job) -> None:
        if self._jobs.pop(job.connection.fileno(), None) is not None:
            self._lingering -= job.lingering
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(job.connection)
        if job.file >= 0:
            os.close(job.file)
        job.connection.close()
