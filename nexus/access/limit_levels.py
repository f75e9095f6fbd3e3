"""The levels of limits, for people and for metrics. No I/O, no clock."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec

from nexus.access import buckets
from nexus.access.callers import Caller
from nexus.access.limits import Counter, Limits

Stored = Mapping[str, tuple[int, int]]
"""By a counter's name: (when it is full again, how long a unit takes); (count, 0) of requests in
progress."""


class LimitLevel(msgspec.Struct, frozen=True):
    """How much of a counter is left.

    Attributes:
        used: What is missing from its capacity, which may be more than that.
        full_in_s: Seconds until nothing is missing; 0 of requests in progress.
    """

    counter: Counter
    used: int
    full_in_s: float = 0.0

    @property
    def left(self) -> int:
        return max(0, self.counter.burst - self.used)

    @property
    def share(self) -> float:
        """The share of the capacity that is left."""
        return self.left / self.counter.burst if self.counter.burst else 0.0


def level_of(counter: Counter, stored: Stored, now_ns: int) -> LimitLevel:
    full_at, unit = stored.get(counter.name, (0, 0))
    if counter.dimension == "parallel":
        return LimitLevel(counter, full_at)
    used = buckets.used(full_at, now_ns, unit=unit or counter.unit_ns)
    return LimitLevel(counter, used, used * counter.unit_ns / 1e9)


def all_levels(limits: Limits, stored: Stored, now_ns: int) -> Iterator[LimitLevel]:
    """The levels of all counters in the table whose limit still exists."""
    for name in stored:
        if (counter := limits.named(name)) is not None:
            yield level_of(counter, stored, now_ns)


def levels_of(caller: Caller, limits: Limits, stored: Stored, now_ns: int) -> list[LimitLevel]:
    """The levels of all counters that a caller's requests may be counted in."""
    counters = {counter.name: counter for counter in limits.of_caller(caller)}
    for name in stored:
        counter = limits.named(name) if name not in counters else None
        if counter is not None and limits.counts(caller, counter):
            counters[name] = counter
    return [level_of(counter, stored, now_ns) for counter in counters.values()]
