"""What responses in the background took in the end: one table for all workers of a gateway.

The worker that sees the end of a response writes its tokens there. The worker that holds budgets
for it reads them. An entry has four 64-bit cells: the digest of the response's id, and the tokens
of the prompt, of the completion, and of those read from a cache. A new entry replaces an older one
of its bucket in turn. Nobody takes a lock: an entry that is lost leaves a hold until its time ends.
"""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

from nexus.fleet.mapping import map_file

BUCKETS = 1024
WAYS = 4
_CELLS = 4
_SIZE = BUCKETS * WAYS * _CELLS * 8


class Tokens(NamedTuple):
    """The tokens of a response; -1 if it reports none."""

    prompt: int = -1
    completion: int = -1
    cached: int = -1


class BackgroundTable:
    """Safe from any process, greenlet or thread."""

    def __init__(self, path: Path | None) -> None:
        """Open or create the table at `path`; None makes one that no other process sees."""
        self._map = map_file(path, _SIZE)
        self._cells = memoryview(self._map).cast("q")
        self._turn = 0

    def put(self, stored_id: str, tokens: Tokens) -> None:
        """Record what a response took that has ended."""
        key = _digest(stored_id)
        self._turn += 1
        entries = self._entries(key)
        cells, at = self._cells, entries[self._turn % WAYS]
        at = next((one for one in entries if cells[one] in (0, key)), at)
        cells[at] = 0
        cells[at + 1], cells[at + 2], cells[at + 3] = tokens
        cells[at] = key

    def take(self, stored_id: str) -> Tokens | None:
        """What a response took, which is then forgotten; None if it is not known to have ended."""
        cells, key = self._cells, _digest(stored_id)
        for at in self._entries(key):
            if cells[at] == key:
                tokens = Tokens(cells[at + 1], cells[at + 2], cells[at + 3])
                cells[at] = 0
                return tokens
        return None

    @staticmethod
    def _entries(key: int) -> range:
        first = key % BUCKETS * WAYS * _CELLS
        return range(first, first + WAYS * _CELLS, _CELLS)


def _digest(stored_id: str) -> int:
    digest = blake2b(stored_id.encode(errors="replace"), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1 or 1
