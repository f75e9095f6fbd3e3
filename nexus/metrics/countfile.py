"""One process's file of counters, histograms or summaries, followed from reading to reading.

What is in such a file stays where it is, so its keys are parsed once. A reading copies the bytes in blocks, compares
each with what it was the last time, and looks only into those that are others.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
from collections.abc import Callable
from itertools import compress, count, pairwise
from operator import ne
from pathlib import Path

from nexus.metrics.files import DamagedFile, bytes_in_use, entries

_KEYS_BETWEEN_PAUSES = 256
_BLOCK = 32
"""Values that are compared at once, as bytes: a block in which nothing changed is passed over."""

_INT = struct.Struct("i")


class Key:
    """A series' key, taken apart."""

    __slots__ = ("documentation", "labels", "metric", "name")

    def __init__(self, encoded: bytes) -> None:
        try:
            self.metric, self.name, self.labels, self.documentation = json.loads(encoded)
        except ValueError as error:
            raise DamagedFile("a key makes no sense") from error


class Series:
    """Numbers for keys: a key has the same one in whichever file it stands."""

    def __init__(self) -> None:
        self._numbers: dict[bytes, int] = {}
        self.keys: list[Key] = []

    def number(self, encoded: bytes) -> int:
        number = self._numbers.get(encoded)
        if number is None:
            key = Key(encoded)
            number = self._numbers[encoded] = len(self.keys)
            self.keys.append(key)
        return number


class CountFile:
    """A file that is mapped for reading. `numbers` are its series, in its own order."""

    def __init__(self, path: Path, series: Series, *, pause: Callable[[], None]) -> None:
        """`pause` is called now and then while many keys are parsed."""
        self._pause = pause
        self.kind, _, self.slot = path.stem.partition("_")
        self.numbers: list[int] = []
        self.values: list[float] = []
        self._series = series
        self._offsets: list[int] = []
        self._parsed = 0
        self._size = 0
        self._where: list[slice] = []
        self._blocks: list[struct.Struct] = []
        self._seen: list[bytes] = []
        self._places: list[list[int]] = []
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.inode = os.fstat(self._fd).st_ino
        self._map: mmap.mmap | None = None

    def refresh(self) -> bool:
        """Take up what was appended; True where there are new series. Raises `DamagedFile` or OSError."""
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
            self.numbers.append(self._series.number(key))
            self._offsets.append(offset)
        self._parsed = used
        starts = range(0, len(self._offsets), _BLOCK)
        blocks = [self._offsets[start : start + _BLOCK] for start in starts]
        self._where = [slice(offsets[0], offsets[-1] + 8) for offsets in blocks]
        self._blocks = [_format(offsets) for offsets in blocks]
        return True

    def arrange(self, positions: dict[int, int]) -> None:
        """From now on give `values` by these positions of the series' numbers; all count as new at the next `take`."""
        places = [positions[number] for number in self.numbers]
        self._places = [places[start : start + _BLOCK] for start in range(0, len(places), _BLOCK)]
        self.values = [0.0] * len(positions)
        self._seen = [b""] * len(self._blocks)

    def look(self) -> list[bytes]:
        """The file's bytes at this moment, in blocks."""
        mapped = self._map
        assert mapped is not None
        return [mapped[where] for where in self._where]

    def take(self, seen: list[bytes]) -> list[int]:
        """Bring `values` up to what was seen; gives the positions of those that are others than before."""
        changed, values = [], self.values
        for block in compress(count(), map(ne, seen, self._seen)):
            for place, value in zip(
                self._places[block], self._blocks[block].unpack(seen[block]), strict=True
            ):
                if values[place] != value:
                    values[place] = value
                    changed.append(place)
        self._seen = seen
        return changed

    def _remap(self) -> mmap.mmap:
        self._release()
        self._size = os.fstat(self._fd).st_size
        if self._size < 8:
            raise DamagedFile("it is empty")
        self._map = mmap.mmap(self._fd, self._size, access=mmap.ACCESS_READ)
        return self._map

    def _release(self) -> None:
        if self._map is not None:
            self._map.close()
            self._map = None

    def close(self) -> None:
        self._release()
        os.close(self._fd)


def _format(offsets: list[int]) -> struct.Struct:
    """What takes the values at these offsets out of their block, skipping what lies between."""
    return struct.Struct(
        "=d" + "".join(f"{later - earlier - 8}xd" for earlier, later in pairwise(offsets))
    )
