"""The health process's part in budgets: what killed processes held becomes spent."""

from __future__ import annotations

import logging

import gevent

from nexus.admin.context import GenerationContext
from nexus.fleet.limit_table import LimitTable
from nexus.health.publisher import Publisher

log = logging.getLogger("nexus.health")

_INTERVAL_S = 1.0


class AccountKeeper:
    """Looks after the accounts of the present generation, once a second."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher
        self._generation: GenerationContext | None = None
        self._table: LimitTable | None = None

    def run(self) -> None:
        """Look after them without end."""
        while True:
            snapshot = self._publisher.snapshot
            if snapshot is not None and snapshot.config.budgets:
                try:
                    self._spend_holds_of_dead()
                except OSError as error:
                    log.error("the accounts of budgets cannot be used", extra={"why": error})
            gevent.sleep(_INTERVAL_S)

    def _spend_holds_of_dead(self) -> None:
        table = self._current_table()
        if table.acquire():
            try:
                table.spend_holds_of_dead()
            finally:
                table.release()

    def _current_table(self) -> LimitTable:
        """The table of the present generation."""
        generation = self._publisher.generation.context
        if self._table is None or generation is not self._generation:
            if self._table is not None:
                self._table.close()
            self._table = None  # if it cannot be opened, it is tried again
            self._table = generation.slot_lease.open_limit_table()
            self._generation = generation
        return self._table
