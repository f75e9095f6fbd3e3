"""A limit on how often pages that cost much processor time are rendered."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")

_PER_S = 10.0
_MAX_COPIES = 32


class TooManyRenders(Exception):
    """The limit is reached, and no copy of the page is kept."""


class PageCache(Generic[T]):
    """Renders at most `per_s` pages a second; beyond that it gives the last copy of the page."""

    def __init__(
        self, *, per_s: float = _PER_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._per_s, self._clock = per_s, clock
        self._tokens, self._refilled_at = per_s, clock()
        self._copies: dict[Hashable, T] = {}

    def get(self, key: Hashable, render: Callable[[], T]) -> T:
        """The page of this key. Raises `TooManyRenders`, and what `render` raises."""
        now = self._clock()
        refill = (now - self._refilled_at) * self._per_s
        self._tokens, self._refilled_at = min(self._per_s, self._tokens + refill), now
        if self._tokens < 1:
            if key not in self._copies:
                raise TooManyRenders
            return self._copies[key]
        self._tokens -= 1
        self._copies.pop(key, None)
        self._copies[key] = page = render()
        while len(self._copies) > _MAX_COPIES:
            del self._copies[next(iter(self._copies))]
        return page
