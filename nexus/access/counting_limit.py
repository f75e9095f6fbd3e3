"""The limit on requests that count tokens, which other limits do not count. No I/O, no clock."""

from __future__ import annotations

from nexus.access.callers import NONE, Caller
from nexus.access.limits import Counter, counters_of
from nexus.config import Config
from nexus.config.limit_records import COUNTING, Limit

_MOST_CACHED = 4096


class CountingLimit:
    """Each key has the whole limit; without a key, each address of clients has it."""

    def __init__(self, rate: str) -> None:
        self._limit = Limit(name=COUNTING, requests=rate)
        self._known: dict[tuple[str, str], tuple[Counter, ...]] = {}

    @classmethod
    def of(cls, config: Config) -> CountingLimit | None:
        """The limit of a configuration; None without one."""
        rate = config.messages.count_tokens_limit
        return None if rate == "off" else cls(rate)

    def counters(self, caller: Caller | None, address: str) -> tuple[Counter, ...]:
        """What a request of this caller, from this address, is counted in."""
        subject = ("address", address)
        if caller is not None and caller.key != NONE:
            subject = ("key", caller.key)
        counters = self._known.get(subject)
        if counters is None:
            if len(self._known) >= _MOST_CACHED:
                self._known.clear()
            counters = self._known[subject] = tuple(counters_of(self._limit, [subject]))
        return counters
