"""A worker's stage of life, in one byte of memory that it shares with its master."""

from __future__ import annotations

import mmap
import signal

STARTING, SERVING, RETIRING, DRAINING = range(4)
"""A retiring worker serves and asks for a replacement. A draining one accepts nothing more."""
ENDING = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGQUIT})
"""Signals with which the master ends a worker."""


class Stage:
    """Created before the fork. The master writes DRAINING; the worker writes all other values."""

    def __init__(self) -> None:
        self._shared = mmap.mmap(-1, 1)

    @property
    def now(self) -> int:
        return self._shared[0]

    def set(self, stage: int) -> None:
        self._shared[0] = stage

    @property
    def serves(self) -> bool:
        """Whether it accepts connections."""
        return self.now in (SERVING, RETIRING)
