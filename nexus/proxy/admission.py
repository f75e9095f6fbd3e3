"""From a request to a place at a backend: choosing, waiting where there is no room, and taking the place."""

from __future__ import annotations

import time
from _thread import RLock
from collections.abc import Callable
from zlib import crc32

import msgspec

from nexus.config import Config
from nexus.errors import Fault
from nexus.fleet.circuits import CircuitTable
from nexus.fleet.load import NORMAL_TICKET, LoadTable, Row
from nexus.metrics.recorder import Recorder
from nexus.proxy.breakers import Breakers, success_of
from nexus.proxy.client import Request
from nexus.proxy.queue import Queue
from nexus.proxy.view import View
from nexus.routing.router import Asked, Choice, Conditions, NoRoom, Standing, Tried, choose

_STANDS_STILL_NS = 250_000_000
"""Those that wait in a process which has not looked for so long keep nobody from the room there is."""


class Place:
    """A request's place at a backend, counted from its admission until `leave()`; `waited_s` in the queue for it."""

    def __init__(self, admission: Admission, choice: Choice, view: View) -> None:
        """`view`: the fleet as it was when the choice was made."""
        self._admission = admission
        self._left = False
        self.view = view
        self.choice = choice
        self.on_trial = choice.trial
        self.waited_s = 0.0

    def proved(self) -> None:
        """The backend has shown that it is well, though the attempt goes on."""
        if self.on_trial:
            self.on_trial = False
            self._admission.proved(self.choice)

    def leave(self, fault: Fault | None, *, retry_after_s: float | None = None) -> None:
        """Give the place back and tell how the attempt ended. Only the first call counts."""
        if not self._left:
            self._left = True
            self._admission.left(self, self.view.snapshot.config, fault, retry_after_s)


class Applicant(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A request that wants a place.

    `ticket` orders those that wait; `turn` is its own among the requests for its model, where the strategy takes turns;
    `deadline` is on the monotonic clock.
    """

    asked: Asked
    request: Request
    ticket: int
    turn: int
    deadline: float


class Admission:
    """Gives places at backends to the requests of one process. Safe from any greenlet or thread."""

    def __init__(
        self,
        *,
        load: LoadTable,
        row: Row,
        circuits: CircuitTable,
        recorder: Recorder,
        view: Callable[[], View],
        chance: Callable[[], float],
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """`view` gives the fleet as it is at each look; it may raise `RequestFailed`."""
        self._load = load
        self._circuits = circuits
        self._recorder = recorder
        self._view = view
        self._chance = chance
        self._clock_ns = clock_ns
        self._breakers = Breakers(circuits, load, recorder, clock_ns=clock_ns, chance=chance)
        self._queue = Queue(row, load, recorder, clock_ns=clock_ns)
        # Choosing and taking are one step, so that a limit is exact within a process.
        self._lock = RLock()

    def ticket(self, *, high: bool) -> int:
        """A place in the order of those that wait: by priority, then by the time of this call."""
        return self._clock_ns() | (0 if high else NORMAL_TICKET)

    def turn(self, model: str, config: Config) -> int:
        """A request's turn among those for the model, over all workers; 0 where the strategy takes none."""
        if config.routing.strategy != "round_robin":
            return 0
        return self._circuits.next_turn(crc32(model.encode()))

    def admit(self, applicant: Applicant, *, tried: Tried) -> Place:
        """A place at the backend that is best now, waited for if need be.

        Raises `RequestFailed` where none can be had, `ClientGone` where the client left while it waited.
        """
        try:
            return self._admit(applicant, tried)
        except NoRoom as no_room:
            settings = self._view().snapshot.config.queue
            if not settings.enabled:
                raise
            began = time.monotonic()
            place = self._queue.wait(
                lambda: self._admit(applicant, tried),
                no_room,
                ticket=applicant.ticket,
                request=applicant.request,
                settings=settings,
                most_s=applicant.deadline - time.monotonic(),
            )
            place.waited_s = time.monotonic() - began
            return place

    def _admit(self, applicant: Applicant, tried: Tried) -> Place:
        view = self._view()
        with self._lock:
            began = time.perf_counter()
            try:
                choice = self._choose(view, applicant, tried)
            finally:
                self._recorder.decided(time.perf_counter() - began)
            self._recorder.attempt_began(choice.backend.column)
            return Place(self, choice, view)

    def _choose(self, view: View, applicant: Applicant, tried: Tried) -> Choice:
        config, asked = view.snapshot.config, applicant.asked
        on_trial: set[int] = set()

        def standing(column: int) -> Standing:
            found = self._breakers.standing(column, config)
            return Standing(state="open") if column in on_trial else found

        def waited_for(column: int) -> bool:
            return self._load.waits_before(column, applicant.ticket, since_ns=self._clock_ns() - _STANDS_STILL_NS)

        now = Conditions(
            load=self._load.pending,
            standing=standing,
            waited_for=waited_for,
            turn=applicant.turn,
            chance=self._chance(),
        )
        while True:
            choice = choose(view.table, asked, tried=tried, now=now)
            if not choice.trial or self._breakers.begin_trial(choice.backend):
                return choice
            on_trial.add(choice.backend.column)

    def proved(self, choice: Choice) -> None:
        """A place on trial has turned out well."""
        self._breakers.proved(choice.backend)

    def left(self, place: Place, config: Config, fault: Fault | None, retry_after_s: float | None) -> None:
        """A place was given back."""
        backend = place.choice.backend
        self._recorder.attempt_ended(
            backend.column, backend.label, fault.error_type if fault else "ok", success=success_of(fault)
        )
        self._breakers.judge(backend, fault, config=config, trial=place.on_trial, retry_after_s=retry_after_s)
        self._queue.freed(backend.column)
