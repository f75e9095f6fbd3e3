"""prometheus_client's metrics files, for which a full file system is an error and not a crash.

Format (`prometheus_client.mmap_dict`): an int32 with the bytes in use, and four bytes of padding.
Then for each value an int32 with the length of its key, the key padded to 8 bytes, and two doubles,
value and timestamp. Files only grow, and entries never move.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator
from pathlib import Path

from prometheus_client.mmap_dict import MmapedDict

_HEAD = 8
_INT = struct.Struct("i")
_FIRST_SIZE = 1 << 16


class DamagedFile(Exception):
    """The bytes are not those of a metrics file."""


class ReservedFile(MmapedDict):
    """A metrics file whose space on the file system is reserved before it is mapped.

    The library makes sparse files: without free space, the first store into one ends the process
    with SIGBUS. With a reservation, creating or growing the file raises OSError instead. Not safe
    for threads.
    """

    def __init__(self, filename: str) -> None:
        _reserve(Path(filename))
        self._mapped: mmap.mmap | None = None
        self._views: list[memoryview[float]] = []
        super().__init__(filename)  # type: ignore[no-untyped-call]

    def _init_value(self, key: str) -> None:
        needed = self._used + len(key.encode()) + 32
        if needed > self._capacity:
            os.posix_fallocate(self._f.fileno(), 0, max(needed, self._capacity * 2))
        super()._init_value(key)  # type: ignore[no-untyped-call]

    def cell(self, key: str) -> tuple[memoryview[float], int]:
        """The cell of a key's value in shared memory, created if it is missing. Raises OSError.

        A cell stays valid when the file grows, because its old mapping shows the same pages.
        """
        self.read_value(key)  # type: ignore[no-untyped-call]
        if self._mapped is not self._m:
            self._mapped = self._m
            self._views.append(memoryview(self._m)[: self._capacity // 8 * 8].cast("d"))
        return self._views[-1], self._positions[key] // 8

    def values(self) -> dict[str, float]:
        """All keys with their values."""
        return {key: value for key, value, _ in self.read_all_values()}  # type: ignore[no-untyped-call]

    def set(self, key: str, value: float) -> None:
        self.write_value(key, value, 0.0)  # type: ignore[no-untyped-call]

    def close(self) -> None:
        for view in self._views:
            view.release()
        super().close()  # type: ignore[no-untyped-call]


def _reserve(path: Path) -> None:
    """Reserve the space of a file. Raises OSError.

    A new one gets its name only then: readers would set it aside as damaged while it is empty.
    """
    made = path if path.exists() else path.with_suffix(".new")
    fd = os.open(made, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(fd, 0, max(_FIRST_SIZE, os.fstat(fd).st_size))
    finally:
        os.close(fd)
    if made != path:
        made.rename(path)


def entries(data: bytes, start: int, used: int) -> Iterator[tuple[bytes, int]]:
    """Each key from `start` (0 for the first) to `used`, with the offset of its value in bytes.

    `data` holds the file's bytes up to `used` at least. Raises `DamagedFile`.
    """
    at = max(start, _HEAD)
    while at < used:
        if at + 4 > used:
            raise DamagedFile("an entry is cut off")
        length = _INT.unpack_from(data, at)[0]
        value_at = at + 4 + length + (8 - (length + 4) % 8)
        if length <= 0 or value_at + 16 > used:
            raise DamagedFile("an entry reaches beyond the end")
        yield data[at + 4 : at + 4 + length], value_at
        at = value_at + 16


def bytes_in_use(data: bytes | mmap.mmap, size: int) -> int:
    """The bytes in use of a file of `size` bytes, from its head. Raises `DamagedFile`."""
    if size < _HEAD:
        raise DamagedFile("it is empty" if size == 0 else "it has no head")
    used: int = _INT.unpack_from(data, 0)[0]
    if used == 0:
        return _HEAD  # created, but still empty
    if used < _HEAD or used > size or used % 8:
        raise DamagedFile("its head is invalid")
    return used
