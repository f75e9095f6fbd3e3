"""Requests that wait for one of the places of a limit on requests in progress.

Within a worker they are served in the order of their arrival. Only the first one of each line polls
for places that other workers released, so that the table of limits is not locked often.
"""

from __future__ import annotations

import contextlib
import select
import time
from collections import deque
from collections.abc import Callable, Iterable
from threading import Lock
from typing import TypeVar

from nexus.access.limits import Counter
from nexus.proxy.limits import Refused, Reserve
from nexus.proxy.queue import Wakeup
from nexus.proxy.request import Request

T = TypeVar("T")
_POLL_INTERVAL_S = 0.01


class PlaceQueue:
    """The lines of one process, by the digest of the counter. Safe from any greenlet or thread."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._lines: dict[tuple[int, int], deque[Wakeup]] = {}

    def line_of(self, counters: Iterable[Counter]) -> Counter | None:
        """The first of the counters for which others wait already."""
        if not self._lines:
            return None
        return next((counter for counter in counters if counter.digest in self._lines), None)

    def wait(self, counter: Counter, reserve: Callable[[], T], *, request: Request) -> T:
        """Call `reserve` when it is this request's turn, until it admits it; return its result.

        The wait ends after the `parallel_wait_seconds` of the limit. Raises what `reserve` raises,
        and `ClientGone`.
        """
        deadline = time.monotonic() + counter.limit.parallel_wait_seconds
        own = Wakeup()
        with self._lock:
            line = self._lines.setdefault(counter.digest, deque())
            line.append(own)
        try:
            while True:
                remaining_s = deadline - time.monotonic()
                first = line[0] is own
                if first or remaining_s <= 0:
                    try:
                        return reserve()
                    except Refused as refusal:
                        if remaining_s <= 0 or not refusal.may_wait:
                            raise
                pause_s = min(remaining_s, _POLL_INTERVAL_S) if first else remaining_s
                with contextlib.suppress(TimeoutError):
                    request.watch.wait(own.event, select.POLLIN, pause_s)
                    own.clear()
        finally:
            with self._lock:
                line.remove(own)
                if line:
                    line[0].notify()
                else:
                    del self._lines[counter.digest]
            own.close()

    def freed(self, reserves: Iterable[Reserve]) -> None:
        """Wake the first request of each line, because a place was released."""
        if not self._lines:
            return
        with self._lock:
            for reserve in reserves:
                if line := self._lines.get(reserve.counter.digest):
                    line[0].notify()
