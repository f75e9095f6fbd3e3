"""From a request to a place at a backend: choosing, waiting where there is no room, and taking
the place."""

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
from nexus.fleet.status import CLEAR, EndpointStatus
from nexus.metrics.recorder import Recorder
from nexus.proxy.fleet_view import View
from nexus.proxy.passive_health import REFUSED, Evidence, PassiveHealth
from nexus.proxy.queue import Queue
from nexus.proxy.request import Request
from nexus.routing.context import RouteQuery, Tried
from nexus.routing.router import AtCapacity, Choice, choose, exclusions

_STANDS_STILL_NS = 250_000_000
"""Those that wait in a process which has not looked for so long keep nobody from the room there
is."""


class Reservation(msgspec.Struct):
    """A request's place at a backend, counted from its admission until `release()`.

    `view`: the fleet as it was when the choice was made. `lease_ns`: the backend's circuit is half
    open, and this is the request that tries it, with a right that ends then; else 0. `waited_s` in
    the queue for it.
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
        """A stream of the backend has come to its first content: no other place is needed.

        What was asked for refers to the whole body, which the stream must not keep in memory.
        """
        self.is_served = True
        self.waiter.query = RouteQuery(self.waiter.query.model)
        self.admission.served(self)

    def release(self, fault: Fault | None, *, retry_after_s: float | None = None) -> None:
        """Give the place back and tell how the attempt ended. Only the first call counts."""
        if not self.released:
            self.released = True
            self.admission.on_released(self, fault, retry_after_s)


class Waiter(msgspec.Struct):
    """A request that wants a place; `deadline` is on the monotonic clock. `_cursor`: see `cursor`.
    `evidence`: what it saw of backends that failed, if any did."""

    query: RouteQuery
    request: Request
    deadline: float
    _cursor: int = 0
    evidence: Evidence | None = None

    @property
    def ticket(self) -> int:
        """Orders those that wait: by priority, then by the time of their heads."""
        high = (self.request.header("x-nexus-priority") or "").strip().lower() == "high"
        return int(self.request.received * 1e9) | (0 if high else NORMAL_TICKET)

    def cursor(self, circuits: CircuitTable) -> int:
        """The request's number among those for its model, over all workers."""
        if not self._cursor:
            self._cursor = circuits.next_cursor(crc32(self.query.model.encode()))
        return self._cursor


class _Now(msgspec.Struct):
    """The conditions of one look for a place. `on_trial`: the backends that another request is
    just trying."""

    admission: Admission
    waiter: Waiter
    config: Config
    load: Callable[[int], int]
    chance: float
    probed_by_others: tuple[int, ...] = ()

    def status(self, column: int, model: str) -> EndpointStatus:
        if not self.admission.circuits.dirty[column]:
            return CLEAR
        found = self.admission.health.status(column, model, self.config)
        return (
            msgspec.structs.replace(found, state="open")
            if column in self.probed_by_others
            else found
        )

    def waited_for(self, column: int) -> bool:
        since_ns = self.admission.clock_ns() - _STANDS_STILL_NS
        return self.admission.load.waits_before(column, self.waiter.ticket, since_ns=since_ns)

    @property
    def holders(self) -> Callable[[int], tuple[int, ...]]:
        return self.admission.prefixes.holders

    @property
    def cursor(self) -> int:
        if self.config.routing.strategy != "round_robin":
            return 0
        return self.waiter.cursor(self.admission.circuits)


class Admission:
    """Gives places at backends to the requests of one process. Safe from any greenlet or thread."""

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
        """`view` gives the fleet as it is at each look; it may raise `RequestFailed`."""
        self.load = load
        self.circuits = circuits
        self.prefixes = prefixes
        self.chance = chance
        self.clock_ns = clock_ns
        self.health = PassiveHealth(circuits, load, recorder, clock_ns=clock_ns, chance=chance)
        self._recorder = recorder
        self._view = view
        self._queue = Queue(row, load, recorder, clock_ns=clock_ns)
        # Choosing and taking are one step, so that a limit is exact within a process.
        self._lock = RLock()

    def admit(self, waiter: Waiter, *, tried: Tried) -> Reservation:
        """A place at the backend that is best now, waited for if need be.

        Raises `RequestFailed` where none can be had, `ClientGone` where the client left while it
        waited.
        """
        try:
            place = self._admit(waiter, tried)
        except RequestFailed as failure:
            if not tried:
                self._count_exclusions(waiter, None)
            if not isinstance(failure, AtCapacity):
                raise
            no_room = failure
        else:
            if place.choice.has_exclusions and not tried:
                self._count_exclusions(waiter, place.choice)
            return place
        settings = self._view().snapshot.config.queue
        if not settings.max_waiting:
            raise no_room
        began = time.monotonic()
        place = self._queue.wait(
            lambda: self._admit(waiter, tried),
            no_room,
            ticket=waiter.ticket,
            request=waiter.request,
            settings=settings,
            most_s=waiter.deadline - time.monotonic(),
        )
        place.waited_s = time.monotonic() - began
        return place

    def _count_exclusions(self, waiter: Waiter, chosen: Choice | None) -> None:
        """Count, once for each request, why backends that have the model were not considered."""
        view = self._view()
        now = _Now(self, waiter, view.snapshot.config, self.load.pending, 0.0)
        for reason in exclusions(view.table, waiter.query, now, chosen=chosen):
            self._recorder.backend_excluded(reason)

    def _admit(self, waiter: Waiter, tried: Tried) -> Reservation:
        view = self._view()
        with self._lock:
            began = time.perf_counter()
            try:
                choice, probe_lease_ns = self._choose(view, waiter, tried)
            except BaseException:
                self._recorder.routing_failed(time.perf_counter() - began)
                raise
            if choice.session is not None:
                # Now, and not after a success: requests with the same prefix often come together.
                now_s = self.clock_ns() // 1_000_000_000
                for key in choice.session.prefixes:
                    self.prefixes.add(key, choice.backend.column, now_s)
            self._recorder.attempt_started(choice.backend.column, time.perf_counter() - began)
            return Reservation(self, waiter, choice, view, probe_lease_ns)

    def _choose(self, view: View, waiter: Waiter, tried: Tried) -> tuple[Choice, int]:
        """A choice, with the end of its lease if it is the half-open probe of its backend."""
        now = _Now(self, waiter, view.snapshot.config, self.load.pending, self.chance())
        while True:
            choice = choose(view.table, waiter.query, tried=tried, now=now)
            if not choice.half_open_probe:
                return choice, 0
            if probe_lease_ns := self.health.acquire_probe_lease(choice.backend, now.config):
                return choice, probe_lease_ns
            now.probed_by_others += (choice.backend.column,)

    def served(self, place: Reservation) -> None:
        """A place has served its request."""
        if place.waiter.evidence is not None:
            place.waiter.evidence.served()
        self.health.served(place)

    def on_released(
        self, place: Reservation, fault: Fault | None, retry_after_s: float | None
    ) -> None:
        """A place was given back."""
        backend, waiter = place.choice.backend, place.waiter
        self._recorder.attempt_ended(
            backend.column,
            backend.label,
            fault.error_type if fault else "ok",
            success=fault is None,
        )
        if fault is None:
            if not place.is_served:
                self.served(place)
        elif fault.blame is Blame.BACKEND:
            if waiter.evidence is None:
                waiter.evidence = Evidence(self.health)
            waiter.evidence.failed(place, fault, served=place.is_served)
        else:
            if waiter.evidence is not None and fault.code in REFUSED:
                waiter.evidence.refused()
            self.health.blameless(place, fault, retry_after_s)
        if self._queue.groups:
            self._queue.freed(backend.column)
