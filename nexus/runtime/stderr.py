"""Standard error that never blocks: it buffers lines for a slow reader, and then drops new ones.

If the reader of a pipe, a terminal, or the journal hangs, `write(2)` would block, and with it the
event loop and every request. O_NONBLOCK cannot be set on descriptor 2, because the flag belongs to
the open file description, which other processes share. So a pipe or a terminal is opened again
through /proc, and a socket is sent to with MSG_DONTWAIT. If neither is possible (another user's
inode, after `su`), the descriptor is polled before each write.
"""

from __future__ import annotations

import _socket
import atexit
import contextlib
import io
import os
import socket
import stat
import sys
import time
from _thread import RLock  # excludes threads; no code below switches greenlets
from collections import deque
from collections.abc import Callable
from functools import partial
from select import select

_BUFFER_BYTES = 64 * 1024
"""Bytes that are buffered for a slow reader."""
_PIPE_BUF = 4096
"""A writable pipe accepts so many bytes as a whole, without blocking (PIPE_BUF)."""
_EXIT_FLUSH_S = 0.5
_RETRY_S = 0.02


class NonBlockingText(io.TextIOBase):
    """A text stream over a descriptor, by default 2. Safe from any greenlet, thread or fork.

    `dropped` counts the lines dropped in this process. `notice` makes the line that reports their
    number, which is written when the reader continues.
    """

    def __init__(self, fd: int = 2) -> None:
        self._fd = fd
        self._lock = RLock()
        self._waiting: deque[bytes] = deque()
        self._size = 0
        self._unreported = 0
        self.dropped = 0
        self.notice: Callable[[int], str] = "{} lines of the log were dropped.".format
        self._own = -1
        self._identity: tuple[int, int] | None = None
        self._send: Callable[[bytes], int]
        self._open()
        os.register_at_fork(after_in_child=self._after_fork)
        atexit.register(self._flush_at_exit)

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return "utf-8"

    def fileno(self) -> int:
        return self._fd

    def isatty(self) -> bool:
        return os.isatty(self._fd)

    def writable(self) -> bool:
        return True

    def flush(self) -> None:
        """Do nothing: `write` writes at once what it can."""

    def write(self, text: str) -> int:
        data = text.encode("utf-8", "backslashreplace")
        with self._lock:
            if self._waiting:
                self._drain()
            sent = 0 if self._waiting else self._write(data)
            if sent == len(data):
                pass
            elif sent > 0:
                self._requeue(data[sent:])  # a partly written line is completed
            elif sent == 0:
                self._buffer(data)
        return len(text)

    def flush_pending(self) -> None:
        """Write buffered lines. Call it a few times a second: no further `write` may follow."""
        if self._identity != _identity(self._fd):
            self._open()  # gunicorn redirected the descriptor when it became a daemon
        if self._waiting or self._unreported:
            with self._lock:
                self._drain()

    def _drain(self) -> None:
        while self._waiting:
            data = self._waiting.popleft()
            while self._waiting and len(data) + len(self._waiting[0]) <= _PIPE_BUF:
                data += self._waiting.popleft()
            self._size -= len(data)
            sent = self._write(data)
            if sent < 0:
                return
            if sent < len(data):
                self._requeue(data[sent:])
                return
        if self._unreported:
            data = f"{self.notice(self._unreported)}\n".encode("utf-8", "backslashreplace")
            with contextlib.suppress(OSError):  # it is tried again, and no line is lost
                sent = self._send(data)
                self._unreported = 0
                if sent < len(data):
                    self._requeue(data[sent:])

    def _write(self, data: bytes) -> int:
        """Bytes written; 0 if the reader is slow, -1 if the bytes are dropped and counted."""
        try:
            return self._send(data)
        except BlockingIOError:
            return 0
        except OSError:  # the reader is gone, or the disk is full: it does not help to wait
            for lost in (data, *self._waiting):
                self._drop(lost)
            self._waiting.clear()
            self._size = 0
            return -1

    def _buffer(self, data: bytes) -> None:
        if self._size + len(data) <= _BUFFER_BYTES:
            self._waiting.append(data)
            self._size += len(data)
        else:
            self._drop(data)

    def _requeue(self, data: bytes) -> None:
        self._waiting.appendleft(data)
        self._size += len(data)

    def _drop(self, data: bytes) -> None:
        lines = data.count(b"\n")
        self.dropped += lines
        self._unreported += lines

    def _open(self) -> None:
        if self._own >= 0:
            os.close(self._own)
            self._own = -1
        self._identity = _identity(self._fd)
        try:
            mode = os.fstat(self._fd).st_mode
            if stat.S_ISSOCK(mode):
                sock = _socket.socket(fileno=os.dup(self._fd))
                self._send = lambda data: sock.send(data, socket.MSG_DONTWAIT)
            elif stat.S_ISREG(mode):
                self._send = partial(os.write, self._fd)
            else:
                flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
                self._own = os.open(f"/proc/self/fd/{self._fd}", flags)
                self._send = partial(os.write, self._own)
        except OSError:
            self._send = self._send_when_writable

    def _send_when_writable(self, data: bytes) -> int:
        if not select([], [self._fd], [], 0)[1]:
            raise BlockingIOError
        return os.write(self._fd, data[:_PIPE_BUF])

    def _after_fork(self) -> None:
        """Drop the buffered lines, which the parent writes."""
        self._lock = RLock()
        self._waiting.clear()
        self._size = 0
        self.dropped = self._unreported = 0

    def _flush_at_exit(self) -> None:
        deadline = time.monotonic() + _EXIT_FLUSH_S
        while (self._waiting or self._unreported) and time.monotonic() < deadline:
            self.flush_pending()
            if self._waiting:
                time.sleep(_RETRY_S)


def _identity(fd: int) -> tuple[int, int] | None:
    try:
        status = os.fstat(fd)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def make_nonblocking() -> None:
    """Let `sys.stderr` of this process never block, tracebacks included."""
    if not isinstance(sys.stderr, NonBlockingText):
        sys.stderr = NonBlockingText()


def flush_pending() -> None:
    """Write buffered lines of standard error, after `make_nonblocking`."""
    if isinstance(sys.stderr, NonBlockingText):
        sys.stderr.flush_pending()


def dropped_lines() -> int:
    """Lines that this process has dropped since it was started or forked."""
    return sys.stderr.dropped if isinstance(sys.stderr, NonBlockingText) else 0
