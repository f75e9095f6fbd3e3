"""Reads one metrics file of counters, histograms or summaries again and again.

An entry of such a file never moves, so each key is parsed once. A read copies the values' bytes in
blocks, compares each block with its last copy, and decodes only the blocks that changed.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
from collections.abc import Callable
from functools import lru_cache
from itertools import compress, count, pairwise
from operator import ne
from pathlib import Path
from sys import intern
from typing import NamedTuple

from nexus.metrics.metrics_file import DamagedFile, bytes_in_use, entries

_KEYS_BETWEEN_PAUSES = 256
_BLOCK = 32
"""Values that are compared at once, as bytes."""

_INT = struct.Struct("i")


class Key(NamedTuple):
    """The key of a series, parsed. `name` is that of the sample, `metric` that of its family."""

    metric: str
    name: str
    labels: dict[str, str]
    documentation: str


class SeriesIndex:
    """Numbers the series of all files: a key has the same number in each of them."""

    def __init__(self) -> None:
        self._numbers: dict[bytes, int] = {}
        self.keys: list[Key] = []

    def number(self, encoded: bytes) -> int:
        """The number of a key. Raises `DamagedFile` if it cannot be parsed."""
        number = self._numbers.get(encoded)
        if number is None:
            try:
                key = _parsed(encoded)
            except (ValueError, TypeError, AttributeError) as error:
                raise DamagedFile("a key cannot be parsed") from error
            number = self._numbers[encoded] = len(self.keys)
            self.keys.append(key)
        return number


def _parsed(encoded: bytes) -> Key:
    """The key that these bytes stand for. Series share most of their strings."""
    metric, name, labels, documentation = json.loads(encoded)
    shared = {intern(label): intern(value) for label, value in labels.items()}
    return Key(intern(metric), intern(name), shared, intern(documentation))


class FileReader:
    """A mapped metrics file.

    Attributes:
        kind: `counter`, `histogram` or `summary`.
        numbers: Its series, in the order of the file.
        values: The values of the last `update()`, by the positions that `set_positions()` gave.
    """

    def __init__(self, path: Path, index: SeriesIndex, *, pause: Callable[[], None]) -> None:
        """`pause` is called now and then while many keys are parsed."""
        self._pause = pause
        self.kind, _, self.slot = path.stem.partition("_")
        self.numbers: list[int] = []
        self.values: list[float] = []
        self._index = index
        self._offsets: list[int] = []
        self._parsed = 0
        self._size = 0
        # By block: its bytes in the file, its format, its last copy, its values' positions.
        self._slices: list[slice] = []
        self._formats: list[struct.Struct] = []
        self._last: list[bytes] = []
        self._positions: list[list[int]] = []
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.inode = os.fstat(self._fd).st_ino
        self._map: mmap.mmap | None = None

    def refresh(self) -> bool:
        """Parse what was appended; whether there are new series.

        Raises `DamagedFile` or OSError.
        """
        mapped = self._map or self._remap()
        if _INT.unpack_from(mapped)[0] == self._parsed:
            return False
        if _INT.unpack_from(mapped)[0] > self._size:
            mapped = self._remap()
        used = bytes_in_use(mapped, self._size)
        if used < self._parsed:
            raise DamagedFile("it has shrunk")
        for key, offset in entries(mapped[:used], self._parsed, used):
            if len(self.numbers) % _KEYS_BETWEEN_PAUSES == 0:
                self._pause()
            self.numbers.append(self._index.number(key))
            self._offsets.append(offset)
        self._parsed = used
        blocks = _in_blocks(self._offsets)
        self._slices = [slice(offsets[0], offsets[-1] + 8) for offsets in blocks]
        self._formats = [_format(offsets) for offsets in blocks]
        return True

    @property
    def has_grown(self) -> bool:
        """Whether there is something that `refresh()` has not parsed."""
        return self._map is not None and _INT.unpack_from(self._map)[0] != self._parsed

    def set_positions(self, positions: dict[int, int]) -> None:
        """Give `values` by these positions of the series' numbers from now on.

        The next `update()` reports all values as changed.
        """
        self._positions = _in_blocks([positions[number] for number in self.numbers])
        self.values = [0.0] * len(positions)
        self._last = [b""] * len(self._formats)

    def read_blocks(self) -> list[bytes]:
        """Copy the values' bytes as they are now."""
        mapped = self._map
        assert mapped is not None
        return [mapped[where] for where in self._slices]

    def update(self, blocks: list[bytes]) -> list[int]:
        """Set `values` from the blocks; return the positions of the values that changed."""
        changed, values = [], self.values
        for block in compress(count(), map(ne, blocks, self._last)):
            for position, value in zip(
                self._positions[block], self._formats[block].unpack(blocks[block]), strict=True
            ):
                if values[position] != value:
                    values[position] = value
                    changed.append(position)
        self._last = blocks
        return changed

    def _remap(self) -> mmap.mmap:
        self._unmap()
        self._size = os.fstat(self._fd).st_size
        if self._size < 8:
            raise DamagedFile("it is empty")
        self._map = mmap.mmap(self._fd, self._size, access=mmap.ACCESS_READ)
        return self._map

    def _unmap(self) -> None:
        if self._map is not None:
            self._map.close()
            self._map = None

    def close(self) -> None:
        self._unmap()
        os.close(self._fd)


def _in_blocks(numbers: list[int]) -> list[list[int]]:
    return [numbers[start : start + _BLOCK] for start in range(0, len(numbers), _BLOCK)]


def _format(offsets: list[int]) -> struct.Struct:
    """What decodes the values at these offsets of a block, skipping what lies between."""
    return _struct(tuple(later - earlier - 8 for earlier, later in pairwise(offsets)))


@lru_cache(maxsize=4096)  # a format takes 1 KB, and most blocks have one of a few
def _struct(gaps: tuple[int, ...]) -> struct.Struct:
    return struct.Struct("=d" + "".join([f"{gap}xd" for gap in gaps]))
