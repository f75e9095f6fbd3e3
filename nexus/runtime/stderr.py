"""Standard error that never blocks: what its reader does not take is kept for a while, then
dropped.

A pipe, a terminal or the journal whose reader stands still would block `write(2)`, and with it an
event loop and every request in it. O_NONBLOCK on descriptor 2 is no way out: the flag belongs to
the open file description, which the parent shell and all other processes share. So a pipe or a
terminal is opened anew through /proc, a socket is sent to with MSG_DONTWAIT, and only what can be
neither (an inode of another user, after `su`) is polled before each write.
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
from _thread import RLock  # greenlets need no lock here: nothing below switches them
from collections import deque
from collections.abc import Callable
from functools import partial
from select import select

_ROOM = 64 * 1024
"""Bytes kept for a reader that is slow for a moment."""
_AT_ONCE = 4096
"""So many bytes a pipe takes whole, and without blocking where it is writable (PIPE_BUF)."""
_GOODBYE_S = 0.5
_RETRY_S = 0.02


class NonBlockingText(io.TextIOBase):
    """A text stream over a descriptor, by default 2. Safe from any greenlet, thread or fork.

    `dropped` counts the lines lost in this process. `notice` gives the line that says how many
    were, written as soon as the reader is back.
    """

    def __init__(self, fd: int = 2) -> None:
        self._fd = fd
        self._lock = RLock()
        self._waiting: deque[bytes] = deque()
        self._size = 0
        self._untold = 0
        self.dropped = 0
        self.notice: Callable[[int], str] = "{} lines of the log were dropped.".format
        self._own = -1
        self._identity: tuple[int, int] | None = None
        self._send: Callable[[bytes], int]
        self._open()
        os.register_at_fork(after_in_child=self._after_fork)
        atexit.register(self._say_goodbye)

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
        """Nothing to do: what could be written was written at once."""

    def write(self, text: str) -> int:
        data = text.encode("utf-8", "backslashreplace")
        with self._lock:
            if self._waiting:
                self._drain()
            sent = 0 if self._waiting else self._try(data)
            if sent == len(data):
                pass
            elif sent > 0:
                self._wait_first(data[sent:])  # a line that was begun is written whole
            elif sent == 0:
                self._keep(data)
        return len(text)

    def flush_pending(self) -> None:
        """Write what waits. To be called a few times a second, since nothing else may be
        written."""
        if self._identity != _identity(self._fd):
            self._open()  # gunicorn redirected the descriptor when it became a daemon
        if self._waiting or self._untold:
            with self._lock:
                self._drain()

    def _drain(self) -> None:
        while self._waiting:
            data = self._waiting.popleft()
            while self._waiting and len(data) + len(self._waiting[0]) <= _AT_ONCE:
                data += self._waiting.popleft()
            self._size -= len(data)
            sent = self._try(data)
            if sent < 0:
                return
            if sent < len(data):
                self._wait_first(data[sent:])
                return
        if self._untold:
            data = f"{self.notice(self._untold)}\n".encode("utf-8", "backslashreplace")
            with contextlib.suppress(OSError):  # tried again: it is no line that could be lost
                sent = self._send(data)
                self._untold = 0
                if sent < len(data):
                    self._wait_first(data[sent:])

    def _try(self, data: bytes) -> int:
        """Bytes written, 0 where there is no room; -1 where they are lost, and counted as such."""
        try:
            return self._send(data)
        except BlockingIOError:
            return 0
        except OSError:  # the reader has gone, the disk is full: waiting would not help
            for lost in (data, *self._waiting):
                self._drop(lost)
            self._waiting.clear()
            self._size = 0
            return -1

    def _keep(self, data: bytes) -> None:
        if self._size + len(data) <= _ROOM:
            self._waiting.append(data)
            self._size += len(data)
        else:
            self._drop(data)

    def _wait_first(self, data: bytes) -> None:
        self._waiting.appendleft(data)
        self._size += len(data)

    def _drop(self, data: bytes) -> None:
        lines = data.count(b"\n")
        self.dropped += lines
        self._untold += lines

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
        return os.write(self._fd, data[:_AT_ONCE])

    def _after_fork(self) -> None:
        """What waits is the parent's to write."""
        self._lock = RLock()
        self._waiting.clear()
        self._size = 0
        self.dropped = self._untold = 0

    def _say_goodbye(self) -> None:
        deadline = time.monotonic() + _GOODBYE_S
        while (self._waiting or self._untold) and time.monotonic() < deadline:
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
    """Have everything that this process writes to `sys.stderr` go this way, traces included."""
    if not isinstance(sys.stderr, NonBlockingText):
        sys.stderr = NonBlockingText()


def flush_pending() -> None:
    """Write what waits for the reader of standard error, where it is guarded."""
    if isinstance(sys.stderr, NonBlockingText):
        sys.stderr.flush_pending()


def dropped_lines() -> int:
    """Lines that this process could not write since it was started or forked."""
    return sys.stderr.dropped if isinstance(sys.stderr, NonBlockingText) else 0
