"""Which backends served which prefixes of prompts: one table for all workers of a gateway.

An entry is one 64-bit cell: a part of the prefix's key, and the last backends that served a prompt
with that prefix. The table has a fixed size. A key belongs to one bucket, whose entries are in the
order of their last use; a new one replaces the last.

There is no lock, and a cell is never torn. If two workers write to a bucket at once, an entry may
be lost or stand there twice, which costs at most one miss in a backend's cache.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from functools import lru_cache
from pathlib import Path

from nexus.fleet.mapping import map_file

BUCKETS = 32768
WAYS = 4
HOLDERS = 4
"""Backends that are recorded for each prefix."""
_SEED = BUCKETS * WAYS
_SIZE = 8 * (_SEED + 1)
_COLUMN_BITS, _COLUMN = 10, (1 << 10) - 1
_TAG = HOLDERS * _COLUMN_BITS
"""A cell has the upper bits of the key from this bit on; the lower ones decide on the bucket."""
_HOLDERS_MASK = (1 << _TAG) - 1


class PrefixTable:
    """Safe from any process, greenlet or thread."""

    def __init__(self, path: Path | None) -> None:
        """Open or create the table at `path`; None makes one that no other process sees."""
        self._map = map_file(path, _SIZE)
        self._cells = memoryview(self._map).cast("Q")
        if not self._cells[_SEED]:
            self._cells[_SEED] = int.from_bytes(os.urandom(8), "little") | 1
        self._last: Collection[int] = ()

    @property
    def seed(self) -> int:
        """A secret random number of this table, with which keys are made.

        Clients do not know it, so they cannot compute keys. Two workers that create the table at
        once may both set it, so it is read each time.
        """
        return self._cells[_SEED]

    def holders(self, key: int) -> tuple[int, ...]:
        """The columns of the backends that served this prefix, the last one first."""
        cells, at, tag = self._cells, key % BUCKETS * WAYS, key >> _TAG
        value = cells[at]
        if value >> _TAG == tag:
            return _columns(value & _HOLDERS_MASK)
        for way in range(at + 1, at + WAYS):
            value = cells[way]
            if value >> _TAG == tag:
                return _columns(value & _HOLDERS_MASK)
        return ()

    def repeats(self, key: int) -> bool:
        """Whether the prompt that this process added last had this prefix."""
        return key in self._last

    def add(self, keys: Collection[int], column: int) -> None:
        """Record that the backend in `column` has served these prefixes of a prompt."""
        cells, self._last = self._cells, keys
        for key in keys:
            at, tag = key % BUCKETS * WAYS, key >> _TAG
            value = cells[at]
            if value >> _TAG != tag or value & _COLUMN != column + 1:
                self._move_to_front(at, tag, column)

    def _move_to_front(self, at: int, tag: int, column: int) -> None:
        cells = self._cells
        bucket = cells[at : at + WAYS].tolist()
        found = next((n for n, value in enumerate(bucket) if value >> _TAG == tag), None)
        last, columns = WAYS - 1, [column]
        if found is not None:
            last = found
            columns += [one for one in _columns(bucket[found] & _HOLDERS_MASK) if one != column]
        for way in range(last, 0, -1):
            cells[at + way] = bucket[way - 1]
        cells[at] = tag << _TAG | _packed(columns[:HOLDERS])


@lru_cache(maxsize=4096)
def _columns(packed: int) -> tuple[int, ...]:
    columns = []
    while packed:
        columns.append((packed & _COLUMN) - 1)
        packed >>= _COLUMN_BITS
    return tuple(columns)


def _packed(columns: list[int]) -> int:
    return sum(column + 1 << n * _COLUMN_BITS for n, column in enumerate(columns))
