"""A bound on the pages that cost much processor time, so that nobody can use up a worker with them."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")

_PER_S = 10.0
_KEPT = 32


class TooOften(Exception):
    """The page was made too often within the last second, and no copy of it is kept."""


class Costly(Generic[T]):
    """Makes pages anew at most ten times a second; beyond that it gives the last copy of the same page."""

    def __init__(
        self, *, per_s: float = _PER_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._per_s, self._clock = per_s, clock
        self._room, self._seen = per_s, clock()
        self._copies: dict[Hashable, T] = {}

    def page(self, key: Hashable, make: Callable[[], T]) -> T:
        """The page of this key. Raises `TooOften`."""
        now = self._clock()
        self._room, self._seen = (
            min(self._per_s, self._room + (now - self._seen) * self._per_s),
            now,
        )
        if self._room < 1:
            if key not in self._copies:
                raise TooOften
            return self._copies[key]
        self._room -= 1
        self._copies.pop(key, None)
        self._copies[key] = found = make()
        while len(self._copies) > _KEPT:
            del self._copies[next(iter(self._copies))]
        return found
