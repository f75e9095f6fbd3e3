"""Admission: reserves capacity at a backend for a request, which may wait in the queue for it."""

from __future__ import annotations

import time
from _thread import RLock
from collections.abc import Callable
from zlib import crc32

import msgspec

from nexus.config import Config
from nexus.errors import Blame, Fault, RequestFailed
from nexus.fleet.circuits import CircuitTable
from nexus.fleet.load_table import NORMAL_TICKET, LoadTable, Row
from nexus.fleet.prefix_table import PrefixTable
from nexus.fleet.records import Backend
from nexus.fleet.status import CLEAR, EndpointStatus
from nexus.metrics.recorder import Recorder
from nexus.proxy.fair_share import Share
from nexus.proxy.fleet_view import View
from nexus.proxy.passive_health import REFUSED, Evidence, PassiveHealth
from nexus.proxy.queue import Queue
from nexus.proxy.request import Request
from nexus.routing.context import RouteQuery, Tried
from nexus.routing.router import AtCapacity, Choice, choose, exclusions

_STALLED_NS = 250_000_000
"""Waiters of a process that has not polled for so long are ignored."""

_AGE_BITS, _AGE_SHIFT = 20, 18
_OLDEST = (1 << _AGE_BITS) - 1
"""In a ticket with a share, the age has units of 0.26 ms, and ends at 4.6 minutes."""


def _youth(arrival_ns: int) -> int:
    """The lower, the longer ago a request has arrived."""
    age = time.monotonic_ns() - arrival_ns >> _AGE_SHIFT
    return _OLDEST - min(max(age, 0), _OLDEST)


def _none_pending(_: int) -> int:
    return 0


class Reservation(msgspec.Struct):
    """A request's claim to capacity at a backend, until `release()`.

    Attributes:
        view: The fleet for which the choice was made.
        probe_lease_ns: If it is the half-open probe, when its lease ends; else 0.
        waited_s: Time in the queue.
    """

    admission: Admission
    waiter: Waiter
    choice: Choice
    view: View
    probe_lease_ns: int
    waited_s: float = 0.0
    is_served: bool = False
    released: bool = False

    @property
    def config(self) -> Config:
        return self.view.snapshot.config

    def mark_served(self) -> None:
        """The first content of a stream has arrived, so no other backend is needed.

        The query refers to the whole body, which the stream must not keep in memory.
        """
        self.is_served = True
        self.waiter.query = RouteQuery(self.waiter.query.model)
        self.admission.served(self)

    def release(self, fault: Fault | None, *, retry_after_s: float | None = None) -> None:
        """Release the capacity, and report the attempt's end. Only the first call counts."""
        if not self.released:
            self.released = True
            self.admission.on_released(self, fault, retry_after_s)


class Waiter(msgspec.Struct):
    """A request that needs capacity.

    Attributes:
        deadline: On the monotonic clock.
        evidence: What the request saw of failed backends, if there were any.
        may_go_first: Whether it may have a high priority.
        share: The share of its key; None if the queue is in the order of arrival.
        takes_capacity: Whether it counts as in flight at a backend, and waits for capacity there.
    """

    query: RouteQuery
    request: Request
    deadline: float
    _cursor: int = 0
    evidence: Evidence | None = None
    may_go_first: bool = True
    share: Share | None = None
    takes_capacity: bool = True

    @property
    def ticket(self) -> int:
        """Orders waiters by priority, then by their keys' shares, then by arrival.

        With a share, it is that of this moment.
        """
        asked = self.request.header("x-nexus-priority")
        high = asked is not None and asked.strip().lower() == "high" and self.may_go_first
        priority, arrival_ns = 0 if high else NORMAL_TICKET, int(self.request.received * 1e9)
        if (share := self.share) is None:
            return priority | arrival_ns
        return priority | share.virtual_time << _AGE_BITS | _youth(arrival_ns)

    def ticket_in_queue(self) -> Callable[[], int]:
        """The ticket at each moment of a wait that starts now."""
        ticket = self.ticket
        if (share := self.share) is None:
            return lambda: ticket
        share.join()
        priority, arrival_ns = ticket & NORMAL_TICKET, int(self.request.received * 1e9)
        return lambda: priority | share.virtual_time << _AGE_BITS | _youth(arrival_ns)

    def cursor(self, circuits: CircuitTable) -> int:
        """The round-robin cursor of the request's model, over all workers."""
        if not self._cursor:
            self._cursor = circuits.next_cursor(crc32(self.query.model.encode()))
        return self._cursor


class _Now(msgspec.Struct):
    """The `RoutingContext` of one choice.

    Attributes:
        probed_by_others: Columns of backends that another request is probing (half open).
    """

    admission: Admission
    waiter: Waiter
    config: Config
    load: Callable[[int], int]
    chance: float
    probed_by_others: tuple[int, ...] = ()

    def status(self, column: int, model: str) -> EndpointStatus:
        if not self.admission.circuits.dirty[column]:
            return CLEAR
        status = self.admission.health.status(column, model, self.config)
        if column in self.probed_by_others:
            return msgspec.structs.replace(status, state="open")
        return status

    def waited_for(self, column: int) -> bool:
        if not self.waiter.takes_capacity:
            return False
        since_ns = self.admission.clock_ns() - _STALLED_NS
        earliest = self.admission.load.earliest_ticket(column, since_ns=since_ns)
        return 0 < earliest < self.waiter.ticket

    @property
    def holders(self) -> Callable[[int], tuple[int, ...]]:
        return self.admission.prefixes.holders

    @property
    def repeats(self) -> Callable[[int], bool]:
        return self.admission.prefixes.repeats

    @property
    def cursor(self) -> int:
        if self.config.routing.strategy != "round_robin":
            return 0
        return self.waiter.cursor(self.admission.circuits)


class Admission:
    """Reserves capacity for the requests of one process. Safe from any greenlet or thread."""

    def __init__(
        self,
        *,
        load: LoadTable,
        row: Row,
        circuits: CircuitTable,
        recorder: Recorder,
        prefixes: PrefixTable,
        view: Callable[[], View],
        chance: Callable[[], float],
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """`view` returns the current fleet; it may raise `RequestFailed`."""
        self.load = load
        self.circuits = circuits
        self.prefixes = prefixes
        self.chance = chance
        self.clock_ns = clock_ns
        self.health = PassiveHealth(circuits, load, recorder, clock_ns=clock_ns, chance=chance)
        self._recorder = recorder
        self._view = view
        self._queue = Queue(row, load, recorder, clock_ns=clock_ns)
        # Choosing and reserving are one step, so that limits are exact within a process.
        self._lock = RLock()

    def admit(self, waiter: Waiter, *, tried: Tried) -> Reservation:
        """Reserve capacity at the best backend, after a wait in the queue if necessary.

        Raises `RequestFailed`, and `ClientGone` if the client disconnects during the wait.
        """
        try:
            reservation = self._admit(waiter, tried)
        except RequestFailed as failure:
            if not tried:
                self._count_exclusions(waiter, None)
            if not isinstance(failure, AtCapacity):
                raise
            at_capacity = failure
        else:
            if reservation.choice.has_exclusions and not tried:
                self._count_exclusions(waiter, reservation.choice)
            return reservation
        settings = self._view().snapshot.config.queue
        if not settings.max_waiting or not waiter.takes_capacity:
            raise at_capacity
        started = time.monotonic()
        reservation = self._queue.wait(
            lambda: self._admit(waiter, tried),
            at_capacity,
            ticket=waiter.ticket_in_queue(),
            fair=waiter.share is not None,
            request=waiter.request,
            settings=settings,
            most_s=waiter.deadline - time.monotonic(),
        )
        reservation.waited_s = time.monotonic() - started
        return reservation

    def admit_at(self, backend: Backend, waiter: Waiter) -> Reservation:
        """Reserve at the backend that stores what the request names, whatever its load."""
        view = self._view()
        with self._lock:
            self._recorder.attempt_started(backend.column, 0.0)
            choice = Choice(backend, waiter.query.model, "capability-match")
            return Reservation(self, waiter, choice, view, 0)

    def _count_exclusions(self, waiter: Waiter, chosen: Choice | None) -> None:
        """Count, once for each request, why backends that have the model were not considered."""
        view = self._view()
        now = _Now(self, waiter, view.snapshot.config, self.load.pending, 0.0)
        for reason in exclusions(view.table, waiter.query, now, chosen=chosen):
            self._recorder.backend_excluded(reason)

    def _admit(self, waiter: Waiter, tried: Tried) -> Reservation:
        view = self._view()
        with self._lock:
            started = time.perf_counter()
            try:
                choice, probe_lease_ns = self._choose(view, waiter, tried)
            except BaseException:
                self._recorder.routing_failed(time.perf_counter() - started)
                raise
            if choice.prefixes:
                # Now, not after a success: requests with the same prefix often arrive together.
                self.prefixes.add(choice.prefixes, choice.backend.column)
            if waiter.share is not None:
                waiter.share.sent()
            self._recorder.attempt_started(
                choice.backend.column if waiter.takes_capacity else None,
                time.perf_counter() - started,
            )
            return Reservation(self, waiter, choice, view, probe_lease_ns)

    def _choose(self, view: View, waiter: Waiter, tried: Tried) -> tuple[Choice, int]:
        """A choice, with the end of its lease if it is the half-open probe of its backend."""
        load = self.load.pending if waiter.takes_capacity else _none_pending
        now = _Now(self, waiter, view.snapshot.config, load, self.chance())
        while True:
            choice = choose(view.table, waiter.query, tried=tried, now=now)
            if not choice.half_open_probe:
                return choice, 0
            if probe_lease_ns := self.health.acquire_probe_lease(choice.backend, now.config):
                return choice, probe_lease_ns
            now.probed_by_others += (choice.backend.column,)

    def served(self, reservation: Reservation) -> None:
        """Report that the backend has served the request."""
        if reservation.waiter.evidence is not None:
            reservation.waiter.evidence.served()
        self.health.served(reservation)

    def on_released(
        self, reservation: Reservation, fault: Fault | None, retry_after_s: float | None
    ) -> None:
        """Report the end of an attempt."""
        backend, waiter = reservation.choice.backend, reservation.waiter
        self._recorder.attempt_ended(
            backend.column,
            backend.label,
            fault.error_type if fault else "ok",
            success=fault is None,
            in_flight=waiter.takes_capacity,
        )
        if fault is None:
            if not reservation.is_served:
                self.served(reservation)
        elif fault.blame is Blame.BACKEND:
            if waiter.evidence is None:
                waiter.evidence = Evidence(self.health)
            waiter.evidence.failed(reservation, fault, served=reservation.is_served)
        else:
            if waiter.evidence is not None and fault.code in REFUSED:
                waiter.evidence.refused()
            self.health.blameless(reservation, fault, retry_after_s)
        if self._queue.groups:
            self._queue.freed(backend.column)
