"""The order of the queue among keys: each gets its share of the tokens, by its team's weight."""

from __future__ import annotations

import logging
from collections.abc import Callable

import msgspec

from nexus.access.callers import Caller
from nexus.fleet.share_table import ShareTable

log = logging.getLogger("nexus.proxy")


class Share(msgspec.Struct):
    """The share of the key that sends one request.

    Attributes:
        charged: The tokens that it was charged when it was sent; 0 until then.
        waits: Whether it is in the queue, or was.
    """

    table: ShareTable
    cell: int
    weight: float
    charged: int = 0
    waits: bool = False

    @property
    def virtual_time(self) -> int:
        """The key's virtual time, which orders its requests among those of other keys."""
        return self.table.waiting(self.cell) if self.waits else self.table.start(self.cell)

    def join(self) -> None:
        """The request starts to wait."""
        self.waits = True
        self.table.join(self.cell)

    def sent(self) -> None:
        """The request is sent to a backend; only the first attempt counts."""
        if not self.charged:
            self.charged = self.table.sent(self.cell, self.weight)

    def ended(self, tokens: int | None) -> None:
        """The request has ended; without `tokens`, it stays charged the mean."""
        if self.charged and tokens is not None:
            self.table.ended(self.cell, self.weight, charged=self.charged, tokens=tokens)


class FairShares:
    """The shares of one process. Safe from any greenlet or thread."""

    def __init__(self, open_table: Callable[[], ShareTable]) -> None:
        """`open_table` is called at the first request of a key."""
        self._open_table = open_table
        self._opened: ShareTable | None = None

    def of(self, caller: Caller) -> Share:
        """The share of a caller's key."""
        table = self._opened
        if table is None:
            try:
                table = self._open_table()
            except OSError as error:
                log.error("the queue's order is fair within a process only", extra={"why": error})
                table = ShareTable(None)
            self._opened = table
        return Share(table, table.cell(caller.key), caller.weight)
