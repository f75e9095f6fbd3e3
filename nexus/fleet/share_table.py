"""What each key has used of the fleet, for the order of the queue: one table for all workers.

This is start-time fair queueing. Each key has a virtual time: the tokens that its requests took,
divided by its weight. The queue's own virtual time is that of the request which was sent to a
backend last. A key that had no requests for a while starts there, so that it has no credit.

The tokens of a request are known only at its end. When it is sent, a mean is charged, and
corrected at the end.

Layout, in 64-bit integers: the virtual time of the queue, the mean, then two cells for each key:
its digest and its virtual time. Only a new key takes the lock. If two workers charge a key at once,
one charge may be lost.
"""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path

from nexus.fleet.locks import LockFile
from nexus.fleet.mapping import map_descriptor

KEYS = 16_384
TIME_BITS = 41
_NOW, _MEAN, _FIRST = 0, 1, 2
_FIRST_MEAN = 256
_MEAN_SHIFT = 4
_LOCK_S = 0.02


class ShareTable:
    """Safe from any process, greenlet or thread."""

    def __init__(self, path: Path | None, *, keys: int = KEYS) -> None:
        """Open or create the table at `path`; None makes one that no other process sees."""
        self._keys = keys
        size = (_FIRST + 2 * keys) * 8
        self._locks = None if path is None else LockFile(path)
        self._map = map_descriptor(self._locks.fileno() if self._locks else None, size)
        self._cells = memoryview(self._map).cast("q")
        self._known: dict[str, int] = {}

    def cell(self, key: str) -> int:
        """The cell of a key. If the table is full, further keys share its last one."""
        found = self._known.get(key)
        if found is None:
            if len(self._known) >= self._keys:
                self._known.clear()
            locked = self._locks is None or self._locks.acquire_within(0, _LOCK_S)
            try:
                found = self._known[key] = self._find(key)
            finally:
                if locked and self._locks is not None:
                    self._locks.release(0)
        return found

    def _find(self, key: str) -> int:
        digest = int.from_bytes(blake2b(key.encode(), digest_size=8).digest()) >> 1 or 1
        cells = self._cells
        for number in range(digest, digest + self._keys):
            at = _FIRST + 2 * (number % self._keys)
            if cells[at] in (0, digest):
                cells[at] = digest
                return at + 1
        return _FIRST + 2 * self._keys - 1

    def start(self, cell: int) -> int:
        """The virtual time at which a key's next request starts; at least 1."""
        return max(1, self._cells[_NOW], self._cells[cell])

    def join(self, cell: int) -> None:
        """A key's request starts to wait; the key has no credit from before."""
        self._cells[cell] = self.start(cell)

    def waiting(self, cell: int) -> int:
        """The virtual time of a key whose requests wait."""
        return self._cells[cell]

    def sent(self, cell: int, weight: float) -> int:
        """Charge a key for a request that is sent to a backend; returns the tokens charged."""
        cells, start = self._cells, self.start(cell)
        if start >> (TIME_BITS - 1):
            self._restart()
            start = 1
        charged = cells[_MEAN] or _FIRST_MEAN
        cells[_NOW] = start
        cells[cell] = start + (charged if weight == 1 else max(1, round(charged / weight)))
        return charged

    def ended(self, cell: int, weight: float, *, charged: int, tokens: int) -> None:
        """Correct the charge of a request that has ended to what it took."""
        cells = self._cells
        cells[cell] = max(1, cells[cell] + round((tokens - charged) / weight))
        mean = cells[_MEAN] or _FIRST_MEAN
        step = tokens - mean >> _MEAN_SHIFT
        cells[_MEAN] = max(1, mean + step)

    def _restart(self) -> None:
        """Let all keys start anew, because the times no longer fit into a ticket."""
        cells = self._cells
        cells[_NOW] = 1
        for cell in range(_FIRST + 1, len(cells), 2):
            cells[cell] = 0

    def close(self) -> None:
        self._cells.release()
        self._map.close()
        if self._locks is not None:
            self._locks.close()
