"""Locks on single bytes of a file. The kernel releases them however their holder ends.

Open-file-description locks (`fcntl(2)`, F_OFD_*) belong to the open file, not to the process: a
fork shares them. Querying a lock does not take it, so a reader never makes a starting process skip
a free slot.
"""

from __future__ import annotations

import fcntl
import os
import struct
import time
from functools import lru_cache
from pathlib import Path

_RETRY_S = 0.005
_FLOCK = struct.Struct("hhqqi4x")  # struct flock on 64-bit Linux: type, whence, start, len, pid


@lru_cache(maxsize=1024)
def _request(kind: int, byte: int) -> bytes:
    """The `struct flock` for one byte."""
    return _FLOCK.pack(kind, os.SEEK_SET, byte, 1, 0)


class LockFile:
    """An open file whose bytes serve as locks. `close()` releases all of them."""

    def __init__(self, path: Path, *, fd: int | None = None) -> None:
        """Open the file, or use `fd`, which this process opened before; it may hold locks."""
        self.path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600) if fd is None else fd

    def acquire(self, byte: int) -> bool:
        """Lock one byte; returns False if another open file holds it."""
        try:
            fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _request(fcntl.F_WRLCK, byte))
        except (BlockingIOError, PermissionError):  # EAGAIN or EACCES: POSIX allows both
            return False
        return True

    def acquire_within(self, byte: int, seconds: float) -> bool:
        """As `acquire`, but wait up to `seconds`: the holder may have been stopped."""
        deadline = time.monotonic() + seconds
        while not (taken := self.acquire(byte)) and time.monotonic() < deadline:
            time.sleep(_RETRY_S)
        return taken

    def release(self, byte: int) -> None:
        fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _request(fcntl.F_UNLCK, byte))

    def acquire_file(self) -> bool:
        """Lock the file as a whole, apart from its bytes; returns False if another file holds it.

        It costs half as much as the lock of a byte.
        """
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def release_file(self) -> None:
        fcntl.flock(self._fd, fcntl.LOCK_UN)

    def held_elsewhere(self, byte: int) -> bool:
        """Whether another open file holds the byte; takes no lock.

        A query is for one byte: for a range, the kernel reports one holder, and not the lowest.
        """
        result = fcntl.fcntl(self._fd, fcntl.F_OFD_GETLK, _request(fcntl.F_WRLCK, byte))
        return bool(_FLOCK.unpack(result)[0] != fcntl.F_UNLCK)

    def write_note(self, text: str) -> None:
        """Write a text into the file for others that find it locked."""
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, text.encode(), 0)

    def read_note(self) -> str:
        return os.pread(self._fd, 4096, 0).decode(errors="replace").strip()

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
