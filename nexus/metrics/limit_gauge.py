"""The levels of limits, read from the shared table when a scrape asks for them."""

from __future__ import annotations

import heapq
import logging

from nexus.access.limit_levels import all_levels
from nexus.access.limits import Limits
from nexus.fleet.limit_table import LimitTable
from nexus.fleet.records import Snapshot
from nexus.fleet.slot_lease import SlotLease

log = logging.getLogger("nexus.metrics")

MOST_SERIES = 50


class LimitGauge:
    """Reads the levels of the limits that are closest to their end."""

    def __init__(self, slot_lease: SlotLease) -> None:
        self._lease = slot_lease
        self._table: LimitTable | None = None
        self._limits: tuple[Snapshot | None, Limits | None] = (None, None)

    def samples(
        self, snapshot: Snapshot | None, now_ns: int
    ) -> list[tuple[tuple[str, str, str], float]]:
        """Limit, subject and dimension, and the share that is left."""
        if snapshot is None:
            return []
        if self._limits[0] is not snapshot:
            self._limits = snapshot, Limits.of(snapshot.config)
        limits = self._limits[1]
        if limits is not None and self._table is None:
            self._table = self._open()
        if limits is None or self._table is None:
            return []
        levels = all_levels(limits, self._table.stored(), now_ns)
        emptiest = heapq.nsmallest(
            MOST_SERIES, ((level.share, level.counter.name, level) for level in levels)
        )
        return [
            ((level.counter.limit.name, level.counter.subject, level.counter.dimension), share)
            for share, _, level in emptiest
        ]

    def close(self) -> None:
        if self._table is not None:
            self._table.close()

    def _open(self) -> LimitTable | None:
        """The table, once a request with limits has made it."""
        generation = self._lease.generation
        try:
            if generation is not None and generation.limits.exists():
                return self._lease.open_limit_table()
        except OSError as error:
            log.warning("the levels of limits cannot be read", extra={"why": error})
        return None
