"""The names of the counters in the table of limits, which itself has only their digests.

The file has an entry of fixed size for each record. An entry is written when its record is claimed,
and begins with the record's key: the name of an earlier counter is not read.
"""

from __future__ import annotations

import contextlib
import os
import struct
from pathlib import Path

_ENTRY = 256
_HEAD = struct.Struct("qH")
LONGEST_NAME = _ENTRY - _HEAD.size


class LimitNames:
    """The file at `path`; None makes one that no other process sees."""

    def __init__(self, path: Path | None) -> None:
        self._fd = (
            os.memfd_create("nexus-limit-names")
            if path is None
            else os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        )

    def write(self, number: int, key: int, name: bytes) -> None:
        """Write the name of a record. Without space, the counter is not shown."""
        name = name[:LONGEST_NAME]
        with contextlib.suppress(OSError):
            os.pwrite(self._fd, _HEAD.pack(key, len(name)) + name, number * _ENTRY)

    def read(self, number: int, key: int) -> str | None:
        """The name of a record; None if it has none."""
        entry = os.pread(self._fd, _ENTRY, number * _ENTRY)
        if len(entry) < _HEAD.size:
            return None
        written, length = _HEAD.unpack_from(entry)
        if written != key or not length:
            return None
        return entry[_HEAD.size : _HEAD.size + length].decode(errors="ignore")

    def close(self) -> None:
        os.close(self._fd)
