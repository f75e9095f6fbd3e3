"""The queue of requests that wait for capacity at a backend.

Within a worker, requests that wait for the same backends are served by priority, then in the order
of their arrival. With keys, arrival decides only among requests of one key: the next key is the one
with the earliest virtual time (`nexus/fleet/share_table.py`). So tickets change during the wait.

Across workers, each worker publishes its earliest ticket for each backend. New requests and later
tickets do not take capacity before it, in any worker. The order is approximate: another worker may
admit a later request within one poll interval (10 ms), or if the first worker hangs.

A limit is exact within a worker. It may be exceeded by one request for each other worker that
admits in the same instant.
"""

from __future__ import annotations

import bisect
import math
import os
import select
import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

from nexus.config.routing_records import Queue as Settings
from nexus.errors import RequestFailed
from nexus.fleet.load_table import LoadTable, Row
from nexus.fleet.records import Backend
from nexus.metrics.recorder import Recorder
from nexus.proxy.request import Request
from nexus.routing.router import AtCapacity

T = TypeVar("T")
_POLL_INTERVAL_S = 0.01
"""How often the first waiter of a group polls for capacity that another worker released."""
_Columns = tuple[int, ...]


class Wakeup:
    """An eventfd that wakes a greenlet, or a thread, that waits."""

    def __init__(self) -> None:
        self.event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def notify(self) -> None:
        os.eventfd_write(self.event, 1)

    def clear(self) -> None:
        os.eventfd_read(self.event)

    def close(self) -> None:
        os.close(self.event)


class _Waiter(Wakeup):
    """A request that waits.

    Attributes:
        arrival: Its ticket when it started to wait, or, if tickets change, when it arrived.
    """

    def __init__(self, ticket: Callable[[], int], arrival: int, columns: _Columns) -> None:
        super().__init__()
        self.ticket = ticket
        self.arrival = arrival
        self.columns = columns


class Queue:
    """The waiting requests of one process. Safe from any greenlet or thread.

    Attributes:
        groups: The waiters by the backends that they wait for, in the order of their arrival; if no
            ticket changes, in the order of their tickets.
    """

    def __init__(
        self, row: Row, load: LoadTable, recorder: Recorder, *, clock_ns: Callable[[], int]
    ) -> None:
        self._row = row
        self._load = load
        self._recorder = recorder
        self._clock_ns = clock_ns
        self._lock = threading.Lock()
        self.groups: dict[_Columns, list[_Waiter]] = {}
        self._fair = False

    def wait(
        self,
        admit: Callable[[], T],
        at_capacity: AtCapacity,
        *,
        ticket: Callable[[], int],
        fair: bool,
        request: Request,
        settings: Settings,
        most_s: float,
    ) -> T:
        """Wait until `admit` returns, and return its result; it raises `AtCapacity` until then.

        With `fair`, the ticket changes during the wait. The wait ends after `most_s`, or earlier if
        `settings` say so. Raises `RequestFailed` and `ClientGone`.
        """
        if at_capacity.ready_in_s > settings.max_wait_s:
            raise at_capacity
        if self._load.waiting() >= settings.max_waiting:
            self._recorder.queue_rejected("full")
            raise _refusal("queue_full", at_capacity, "The queue is full; try again shortly.")
        started_ns = self._clock_ns()
        deadline_ns = started_ns + int(min(settings.max_wait_s, most_s) * 1e9)
        shown_at = at_capacity.backends[0].column
        arrival = int(request.received * 1e9) if fair else ticket()
        waiter = _Waiter(ticket, arrival, _columns(at_capacity.backends))
        self._fair |= fair
        self._recorder.enqueued(shown_at)
        self._join(waiter)
        try:
            while True:
                first = self._is_first(waiter)
                if first:
                    self._row.record_queue_poll(self._clock_ns())
                    try:
                        return admit()
                    except AtCapacity as still:
                        self._regroup(waiter, _columns(still.backends))
                        at_capacity = still
                remaining_s = (deadline_ns - self._clock_ns()) / 1e9
                if remaining_s <= 0:
                    self._recorder.queue_rejected("late")
                    waited_s = (self._clock_ns() - started_ns) / 1e9
                    message = f"No backend had capacity within {waited_s:.1f} s."
                    raise _refusal("queue_timeout", at_capacity, message)
                timeout_s = min(remaining_s, _POLL_INTERVAL_S) if first else remaining_s
                try:
                    request.watch.wait(waiter.event, select.POLLIN, timeout_s)
                except TimeoutError:
                    continue
                waiter.clear()
        finally:
            self._leave(waiter)
            waiter.close()
            self._recorder.dequeued(shown_at, (self._clock_ns() - started_ns) / 1e9)

    def freed(self, column: int) -> None:
        """Wake the first waiters for a backend that has capacity again."""
        with self._lock:
            for columns, group in self.groups.items():
                if column in columns:
                    self._first(group).notify()

    def _first(self, group: list[_Waiter]) -> _Waiter:
        """The waiter that is served next. Among equal tickets it is the one that came first."""
        return min(group, key=lambda waiter: waiter.ticket()) if self._fair else group[0]

    def _is_first(self, waiter: _Waiter) -> bool:
        """Whether a waiter that woke up is the first of its group.

        If tickets change, it publishes its present one, or wakes the one that is first instead.
        """
        if not self._fair:
            return self.groups[waiter.columns][0] is waiter
        with self._lock:
            first = self._first(self.groups[waiter.columns])
            if first is waiter:
                self._post(waiter.columns)
            else:
                first.notify()
        return first is waiter

    def _join(self, waiter: _Waiter) -> None:
        with self._lock:
            group = self.groups.setdefault(waiter.columns, [])
            bisect.insort(group, waiter, key=lambda other: other.arrival)
            self._row.record_queue_poll(self._clock_ns())
            self._post(waiter.columns)

    def _leave(self, waiter: _Waiter) -> None:
        with self._lock:
            group = self.groups[waiter.columns]
            group.remove(waiter)
            if group:
                self._first(group).notify()
            else:
                del self.groups[waiter.columns]
            self._post(waiter.columns)

    def _regroup(self, waiter: _Waiter, columns: _Columns) -> None:
        """Move a waiter to other backends, because the fleet has changed."""
        if columns != waiter.columns:
            self._leave(waiter)
            waiter.columns = columns
            self._join(waiter)

    def _post(self, columns: _Columns) -> None:
        """Publish the earliest tickets for other workers."""
        for column in columns:
            groups = (group for key, group in self.groups.items() if column in key)
            earliest = (self._first(group).ticket() for group in groups)
            self._row.post_ticket(column, min(earliest, default=0))


def _columns(backends: Sequence[Backend]) -> _Columns:
    return tuple(sorted({backend.column for backend in backends}))


def _refusal(fault: str, at_capacity: AtCapacity, message: str) -> RequestFailed:
    retry_after_s = max(1, math.ceil(at_capacity.ready_in_s))
    headers = {**at_capacity.headers, "retry-after": str(retry_after_s)}
    return RequestFailed(fault, message, headers=headers, context=at_capacity.context)
