"""Responses that backends make in the background: budgets hold for them until they have ended.

The worker that got the request holds. Any worker may see the response's end, when a client gets
it. If none does within an hour, the response is charged as held, as it is if the worker ends.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import msgspec

from nexus.access.prices import Prices
from nexus.dialects.base import Usage
from nexus.fleet.background_table import BackgroundTable, Tokens
from nexus.fleet.records import Backend
from nexus.proxy import costs
from nexus.proxy.budgets import Hold
from nexus.proxy.limits import Limiter

LONGEST_S = 3600.0


class Pending(msgspec.Struct, frozen=True):
    """A response that has not ended, as far as is known.

    Attributes:
        holds: What its budgets hold.
        until: On the monotonic clock, when it is charged as held.
    """

    holds: Sequence[Hold]
    prices: Prices
    backend: Backend
    model: str
    until: float

    def costs(self, tokens: Tokens | None) -> list[tuple[Hold, int]]:
        """What it costs each account; as held if nobody knows its tokens."""
        if tokens is None or tokens.prompt < 0:
            return [(hold, hold.nano) for hold in self.holds]
        usage = Usage(tokens.prompt, tokens.completion, tokens.cached)
        charge = costs.charge(
            self.prices,
            self.backend,
            self.model,
            usage=usage,
            served=True,
            estimated_prompt=int,
            images=0,
            seconds=0.0,
        )
        return [
            (hold, charge.total if self.backend.cloud or hold.account.action is None else 0)
            for hold in self.holds
        ]


class BackgroundHolds:
    """The responses that this process holds budgets for. Safe from any greenlet or thread."""

    def __init__(
        self,
        open_table: Callable[[], BackgroundTable],
        limiter: Limiter,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`open_table` is called at the first response of that kind."""
        self._open_table = open_table
        self._limiter = limiter
        self._clock = clock
        self._opened: BackgroundTable | None = None
        self._lock = threading.Lock()
        self._pending: dict[str, Pending] = {}

    def keep(self, stored_id: str, pending: Pending) -> None:
        """Hold until the response ends."""
        self._pending[stored_id] = pending

    def ended(self, stored_id: str, usage: Usage | None) -> None:
        """A client got the response, and it has ended."""
        tokens = Tokens()
        if usage is not None:
            counts = usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens
            tokens = Tokens(*(count or 0 for count in counts))
        self._table().put(stored_id, tokens)

    def settle(self) -> None:
        """Charge the responses that have ended, or whose time is over."""
        if not self._pending:
            return
        table, now = self._table(), self._clock()
        for stored_id, pending in [*self._pending.items()]:
            tokens = table.take(stored_id)
            if tokens is None and now < pending.until:
                continue
            if self._pending.pop(stored_id, None) is not None:
                self._limiter.settle((), pending.costs(tokens))

    def _table(self) -> BackgroundTable:
        with self._lock:
            if self._opened is None:
                self._opened = self._open_table()
            return self._opened
