"""Where a worker is in its life: one byte that it shares with the process that forked it."""

from __future__ import annotations

import mmap

STARTING, SERVING, RETIRING, DRAINING = range(4)
"""A worker serves, asks to be replaced when it is worn, and drains when its master says so."""


class Stage:
    """Made before the fork. The worker writes all values but DRAINING, which its master writes."""

    def __init__(self) -> None:
        self._shared = mmap.mmap(-1, 1)

    @property
    def now(self) -> int:
        return self._shared[0]

    def set(self, stage: int) -> None:
        self._shared[0] = stage

    @property
    def serves(self) -> bool:
        """Whether it takes connections."""
        return self.now in (SERVING, RETIRING)
