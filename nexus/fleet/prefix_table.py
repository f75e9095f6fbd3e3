"""Which backends served which prefixes of prompts: one table for all workers of a gateway.

An entry has two 64-bit cells: the key of a prefix, and the last backends that served a prompt with
that prefix. The table has a fixed size. A key belongs to one bucket; a new key replaces the least
recently used one there.

There is no lock. If two workers write an entry at once, one write may be lost, or a key may get the
backends of another prefix. A wrong entry costs one miss in a backend's cache.
"""

from __future__ import annotations

from pathlib import Path

from nexus.fleet.mapping import map_file

BUCKETS = 16384
WAYS = 4
HOLDERS = 4
"""Backends that are recorded for each prefix."""
_SIZE = BUCKETS * WAYS * 16
_COLUMN_BITS, _COLUMN = 10, (1 << 10) - 1
_STAMP_SHIFT = HOLDERS * _COLUMN_BITS
_HOLDERS_MASK = (1 << _STAMP_SHIFT) - 1
_STAMPS = (1 << 22) - 1  # seconds; wraps after 48 days
_FRESH_S = 8
"""An unchanged entry is not written again within this time."""


class PrefixTable:
    """Safe from any process, greenlet or thread."""

    def __init__(self, path: Path | None) -> None:
        """Open or create the table at `path`; None makes one that no other process sees."""
        self._map = map_file(path, _SIZE)
        self._cells = memoryview(self._map).cast("q")

    def holders(self, key: int) -> tuple[int, ...]:
        """The columns of the backends that served this prefix, the last one first."""
        cells, at = self._cells, key % BUCKETS * WAYS * 2
        for way in range(at, at + 2 * WAYS, 2):
            if cells[way] == key:
                return _columns(cells[way + 1])
        return ()

    def add(self, key: int, column: int, now_s: int) -> None:
        """Record that the backend in `column` has served this prefix. `key` is not 0."""
        cells, at, stamp = self._cells, key % BUCKETS * WAYS * 2, now_s & _STAMPS
        oldest, age = at, -1
        for way in range(at, at + 2 * WAYS, 2):
            value = cells[way + 1]
            since = stamp - (value >> _STAMP_SHIFT) & _STAMPS
            if cells[way] == key:
                if value & _COLUMN == column + 1:
                    if since >= _FRESH_S:
                        cells[way + 1] = stamp << _STAMP_SHIFT | value & _HOLDERS_MASK
                    return
                others = [one for one in _columns(value) if one != column]
                cells[way + 1] = _packed(stamp, (column, *others[: HOLDERS - 1]))
                return
            if not cells[way]:
                since = _STAMPS
            if since > age:
                oldest, age = way, since
        cells[oldest] = 0
        cells[oldest + 1] = _packed(stamp, (column,))
        cells[oldest] = key


def _columns(value: int) -> tuple[int, ...]:
    holders, columns = value & _HOLDERS_MASK, []
    while holders:
        columns.append((holders & _COLUMN) - 1)
        holders >>= _COLUMN_BITS
    return tuple(columns)


def _packed(stamp: int, columns: tuple[int, ...]) -> int:
    value = stamp
    for n in reversed(range(HOLDERS)):
        value = value << _COLUMN_BITS | (columns[n] + 1 if n < len(columns) else 0)
    return value
