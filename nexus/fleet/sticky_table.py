"""Which backend stores a response: one table for all workers of a gateway.

An entry is two 64-bit cells: the digest of an id, and when it was last used, with the digest of its
backend's name. The table has a fixed size. A digest belongs to one bucket, where a new one replaces
the one that was used least recently.

Nobody takes a lock. If two workers write to a bucket at once, one of the entries may be lost.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from zlib import crc32

from nexus.fleet.mapping import map_file

BUCKETS = 8192
WAYS = 8
ENTRIES = BUCKETS * WAYS
LIFETIME_S = 24 * 3600
_FRESH_S = 60
"""An entry is not renewed again within this time."""
_CELLS = 2 * ENTRIES
_SIZE = 8 * (_CELLS + 1)
"""The last cell counts the entries that were written. It only tells whether there are new ones."""
_NAME_BITS, _NAME = 32, (1 << 32) - 1


class StickyTable:
    """Safe from any process, greenlet or thread."""

    def __init__(self, path: Path | None) -> None:
        """Open or create the table at `path`; None makes one that no other process sees."""
        self._map = map_file(path, _SIZE)
        self._cells = memoryview(self._map).cast("Q")
        self._counted, self._used = (0, 0), 0

    def add(self, stored_id: str, backend: str, now_s: int) -> None:
        """Record that a backend stores what this id names; `now_s` on the monotonic clock."""
        cells, key = self._cells, _digest(stored_id)
        at = key % BUCKETS * WAYS * 2
        ways = range(at, at + 2 * WAYS, 2)
        value = now_s << _NAME_BITS | _name_digest(backend)
        way = next((way for way in ways if cells[way] == key), None)
        if way is not None:
            cells[way + 1] = value  # others find it at every moment
            return
        way = min(ways, key=lambda way: cells[way + 1])
        cells[way] = 0
        cells[way + 1] = value
        cells[way] = key
        cells[_CELLS] = cells[_CELLS] + 1 & _NAME

    def find(self, stored_id: str, backends: Iterable[str], now_s: int) -> str | None:
        """The backend that stores what this id names.

        None if the table does not know the id; an empty name if none of `backends` is the one.
        """
        cells, key = self._cells, _digest(stored_id)
        at = key % BUCKETS * WAYS * 2
        for way in range(at, at + 2 * WAYS, 2):
            if cells[way] == key:
                value = cells[way + 1]
                age_s = now_s - (value >> _NAME_BITS)
                if age_s >= LIFETIME_S:
                    return None
                if age_s >= _FRESH_S:
                    cells[way + 1] = now_s << _NAME_BITS | value & _NAME
                name = value & _NAME
                return next((one for one in backends if _name_digest(one) == name), "")
        return None

    def used(self, now_s: int) -> int:
        """How many ids are known now. It counts anew if there are new ones, and once a minute."""
        counted = self._cells[_CELLS], now_s // _FRESH_S
        if counted[0] and counted != self._counted:
            oldest = max(0, now_s - LIFETIME_S) << _NAME_BITS
            self._used = sum(value > oldest for value in self._cells[1:_CELLS:2].tolist())
            self._counted = counted
        return self._used


def _digest(stored_id: str) -> int:
    digest = blake2b(stored_id.encode(errors="replace"), digest_size=8).digest()
    return int.from_bytes(digest, "little") or 1


@lru_cache(maxsize=1024)
def _name_digest(backend: str) -> int:
    return crc32(backend.encode(errors="replace"))
