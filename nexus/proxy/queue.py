"""Waiting for room at a backend.

Within a worker, requests that wait for the same backends are served by priority, then in the order
in which they came. Between workers that holds as far as the shared table allows: each worker shows
the earliest ticket that waits for a backend, and neither a new request nor a later ticket takes
room there before it, unless that worker stands still. So no request is overtaken by a later one of
its priority that waits for the same backends, whichever worker has it, but by those that a worker
admits within the ten milliseconds in which another has not looked yet. A limit is exact within a
worker, and may be passed by one request for each other worker that looks in the same instant.
"""

from __future__ import annotations

import bisect
import math
import os
import select
import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

from nexus.config.records import Queue as Settings
from nexus.errors import RequestFailed
from nexus.fleet.load_table import LoadTable, Row
from nexus.fleet.records import Backend
from nexus.metrics.recorder import Recorder
from nexus.proxy.request import Request
from nexus.routing.router import AtCapacity

T = TypeVar("T")
_LOOK_EVERY_S = 0.01
"""How often the first of a group looks for room that another worker has freed."""
_Columns = tuple[int, ...]


class _Waiter:
    """One request that waits, and the bell by which its greenlet is called."""

    def __init__(self, ticket: int, columns: _Columns) -> None:
        self.ticket = ticket
        self.columns = columns
        self.bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def ring(self) -> None:
        os.eventfd_write(self.bell, 1)

    def answer(self) -> None:
        os.eventfd_read(self.bell)


class Queue:
    """The requests of one process that wait. Safe from any greenlet or thread.

    `groups` are those that wait, by the backends that they wait for.
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

    def wait(
        self,
        admit: Callable[[], T],
        no_room: AtCapacity,
        *,
        ticket: int,
        request: Request,
        settings: Settings,
        most_s: float,
    ) -> T:
        """Wait until `admit` gives something, and give that; it is called in turn, and raises
        `AtCapacity` while it cannot.

        Waits at most `most_s`, and no longer than `settings` allow. Raises `RequestFailed`, or
        `ClientGone`.
        """
        if no_room.ready_in_s > settings.max_wait_s:
            raise no_room
        if self._load.waiting() >= settings.max_waiting:
            self._recorder.queue_rejected("full")
            raise _refusal(
                "queue_full",
                no_room,
                "As many requests wait for a backend as may; try again shortly.",
            )
        began_ns = self._clock_ns()
        deadline_ns = began_ns + int(min(settings.max_wait_s, most_s) * 1e9)
        shown_at = no_room.backends[0].column
        waiter = _Waiter(ticket, _columns(no_room.backends))
        self._recorder.enqueued(shown_at)
        self._join(waiter)
        try:
            while True:
                first = self.groups[waiter.columns][0] is waiter
                if first:
                    self._row.record_queue_poll(self._clock_ns())
                    try:
                        return admit()
                    except AtCapacity as still:
                        self._regroup(waiter, _columns(still.backends))
                        no_room = still
                left_s = (deadline_ns - self._clock_ns()) / 1e9
                if left_s <= 0:
                    self._recorder.queue_rejected("late")
                    waited_s = (self._clock_ns() - began_ns) / 1e9
                    raise _refusal(
                        "queue_timeout", no_room, f"No backend had room within {waited_s:.1f} s."
                    )
                try:
                    request.watch.wait(
                        waiter.bell, select.POLLIN, min(left_s, _LOOK_EVERY_S) if first else left_s
                    )
                except TimeoutError:
                    continue
                waiter.answer()
        finally:
            self._leave(waiter)
            os.close(waiter.bell)
            self._recorder.dequeued(shown_at, (self._clock_ns() - began_ns) / 1e9)

    def freed(self, column: int) -> None:
        """Room came up at a backend: those who wait for it first look at once."""
        with self._lock:
            for columns, group in self.groups.items():
                if column in columns:
                    group[0].ring()

    def _join(self, waiter: _Waiter) -> None:
        with self._lock:
            group = self.groups.setdefault(waiter.columns, [])
            bisect.insort(group, waiter, key=lambda other: other.ticket)
            self._row.record_queue_poll(self._clock_ns())
            self._post(waiter.columns)

    def _leave(self, waiter: _Waiter) -> None:
        with self._lock:
            group = self.groups[waiter.columns]
            group.remove(waiter)
            if group:
                group[0].ring()
            else:
                del self.groups[waiter.columns]
            self._post(waiter.columns)

    def _regroup(self, waiter: _Waiter, columns: _Columns) -> None:
        """It waits for other backends now: the fleet, or what it has tried, changed."""
        if columns != waiter.columns:
            self._leave(waiter)
            waiter.columns = columns
            self._join(waiter)

    def _post(self, columns: _Columns) -> None:
        """Show other workers the earliest tickets."""
        for column in columns:
            earliest = (group[0].ticket for found, group in self.groups.items() if column in found)
            self._row.post_ticket(column, min(earliest, default=0))


def _columns(backends: Sequence[Backend]) -> _Columns:
    return tuple(sorted({backend.column for backend in backends}))


def _refusal(fault: str, no_room: AtCapacity, message: str) -> RequestFailed:
    retry_after_s = max(1, math.ceil(no_room.ready_in_s))
    headers = {**no_room.headers, "retry-after": str(retry_after_s)}
    return RequestFailed(fault, message, headers=headers, context=no_room.context)
