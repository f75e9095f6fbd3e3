"""A file of lines that several processes append to and rotate.

Each line is one `write` with O_APPEND, so the lines of several processes never mix. A process that
finds a rotation due locks the file, renames it, and makes a new one. The others notice within a
second that the path names another file, and open that. What they write until then is in the renamed
file. Another program, such as logrotate, may rename the file, too.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import math
import os
import re
import stat
import time
from collections.abc import Callable
from pathlib import Path

log = logging.getLogger("nexus.runtime")

_CHECK_INTERVAL_S = 1.0
_RETRY_S = 60.0
"""A rotation that failed is tried again after so long."""


class LineFile:
    """The file, as one process writes it. Not safe for threads.

    Opened, it has mode 0600 if it is new. Files that were rotated have the suffix `.TIME`, in UTC.
    """

    def __init__(
        self,
        path: Path,
        *,
        max_bytes: int,
        max_age_s: float,
        keep: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Rotation is due at `max_bytes`, and at each multiple of `max_age_s` in Unix time.

        A `max_age_s` of 0 stands for never. `keep` rotated files are kept.
        """
        self._path, self._max_bytes, self._keep = path, max_bytes, keep
        self._max_age_s = max_age_s
        self._clock = clock
        self._fd = -1
        self._end = 0
        self._check_at = self._rotate_at = 0.0
        self._retry_at = 0.0

    def write(self, line: bytes) -> None:
        """Append a line, which ends with a newline. Raises OSError if it is not in the file."""
        now = self._clock()
        if self._fd < 0 or now >= self._check_at:
            self._follow(now)
        if (self._end >= self._max_bytes or now >= self._rotate_at) and now >= self._retry_at:
            self._rotate(now)
        written = os.write(self._fd, line)
        self._end = os.lseek(self._fd, 0, os.SEEK_CUR)
        if written < len(line):
            # The disk is full. Without this, the next line of any process would continue this one.
            if os.fstat(self._fd).st_size == self._end:
                os.ftruncate(self._fd, self._end - written)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _follow(self, now: float) -> None:
        """Open the file that the path names, unless it is open."""
        self._check_at = now + _CHECK_INTERVAL_S
        if not self._is_current():
            self._open(now)
        self._end = os.fstat(self._fd).st_size

    def _is_current(self) -> bool:
        """Whether the open file is the one that the path names."""
        if self._fd < 0:
            return False
        try:
            return os.path.samestat(self._path.stat(), os.fstat(self._fd))
        except FileNotFoundError:
            return False

    def _open(self, now: float) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
        fd = os.open(self._path, flags, 0o600)
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            os.close(fd)
            raise OSError(errno.EINVAL, "not a regular file")
        self.close()
        self._fd, self._end = fd, status.st_size
        since = min(status.st_mtime, now) if status.st_size else now
        age = self._max_age_s
        self._rotate_at = (since // age + 1) * age if age else math.inf

    def _rotate(self, now: float) -> None:
        """Rename the file and open a new one. Does nothing while another process does that."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if self._is_current() and os.fstat(self._fd).st_size:
                self._path.rename(self._free_name(now))
                self._delete_oldest()
            self._open(now)  # this closes the old file, and so releases the lock
        except BlockingIOError:
            return
        except OSError as error:
            self._retry_at = now + _RETRY_S
            fcntl.flock(self._fd, fcntl.LOCK_UN)
            log.error("a file cannot be rotated", extra={"path": self._path, "why": error})

    def _free_name(self, now: float) -> Path:
        name = f"{self._path}.{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime(now))}"
        number, found = 0, Path(name)
        while found.exists():
            number += 1
            found = Path(f"{name}-{number:03d}")
        return found

    def _delete_oldest(self) -> None:
        ours = re.compile(re.escape(self._path.name) + r"\.\d{8}T\d{6}Z(-\d{3})?")
        rotated = sorted(one for one in self._path.parent.iterdir() if ours.fullmatch(one.name))
        for old in rotated[: max(0, len(rotated) - self._keep)]:
            with contextlib.suppress(FileNotFoundError):
                old.unlink()
