"""What requests see of the backends, told to all workers: circuits that open and close, and who said it is busy."""

from __future__ import annotations

import logging
from collections.abc import Callable

from nexus.config import Config
from nexus.errors import Blame, Fault
from nexus.fleet.circuits import CircuitTable
from nexus.fleet.load import WINDOW_S, LoadTable
from nexus.fleet.records import Backend
from nexus.metrics.recorder import Recorder
from nexus.routing.circuit import open_for_s, share_after, should_open
from nexus.routing.router import CLEAR, Standing

log = logging.getLogger("nexus.proxy")

BUSY_S = 1.0
"""For how long a backend counts as busy that did not say when to come back."""
_LONGEST_BUSY_S = 60.0
_TELLS_NOTHING = frozenset({"client_gone", "shutdown", "stopping", "out_of_time", "internal"})
"""Ends of an attempt that say nothing of the backend."""


def success_of(fault: Fault | None) -> bool | None:
    """Whether an attempt speaks for the backend or against it; None where it does neither."""
    if fault is None:
        return True
    return False if fault.blame is Blame.BACKEND else None


def standing_of(column: int, circuits: CircuitTable, load: LoadTable, *, config: Config, now_ns: int) -> Standing:
    """How a backend stands at this moment, by the shared tables."""
    if not circuits.noted[column]:
        return CLEAR
    circuit = circuits.read(column)
    failures = 0
    if circuit.failed > circuit.recovered and now_ns - circuit.failed < WINDOW_S * 1e9:
        failures = load.outcomes(column, now_ns, since_ns=circuit.recovered)[1]
    slow_start_s = config.circuit_breaker.slow_start_seconds
    return Standing(
        state=circuit.state(now_ns) if config.circuit_breaker.enabled else "closed",
        ready_in_s=max(0.0, (circuit.open_until - now_ns) / 1e9),
        busy_s=max(0.0, (circuit.busy_until - now_ns) / 1e9),
        share=share_after((now_ns - circuit.recovered) / 1e9, slow_start_s) if circuit.recovered else 1.0,
        failures=failures,
    )


class Breakers:
    """Reads and moves the circuits of the host. Safe from any greenlet or thread."""

    def __init__(
        self,
        circuits: CircuitTable,
        load: LoadTable,
        recorder: Recorder,
        *,
        clock_ns: Callable[[], int],
        chance: Callable[[], float],
    ) -> None:
        self._circuits = circuits
        self._load = load
        self._recorder = recorder
        self._clock_ns = clock_ns
        self._chance = chance

    def standing(self, column: int, config: Config) -> Standing:
        """How the backend stands now. Costs one look into shared memory where there is nothing to tell."""
        if not self._circuits.noted[column]:
            return CLEAR
        now_ns = self._clock_ns()
        self._circuits.forget_if(column, now_ns - int(max(WINDOW_S, config.circuit_breaker.slow_start_seconds) * 1e9))
        return standing_of(column, self._circuits, self._load, config=config, now_ns=now_ns)

    def begin_trial(self, backend: Backend) -> bool:
        """Take the right to be the one request that tries a backend whose circuit is half open."""
        if not self._circuits.begin_trial(backend.column):
            return False
        if self._circuits.state(backend.column, self._clock_ns()) == "half_open":
            return True
        self._circuits.end_trial(backend.column)  # another trial has ended meanwhile
        return False

    def judge(
        self, backend: Backend, fault: Fault | None, *, config: Config, trial: bool, retry_after_s: float | None
    ) -> None:
        """Draw the conclusions from an attempt that has ended and was counted."""
        column = backend.column
        if fault is None and not trial:
            self._circuits.note_success(column)
            return
        now_ns = self._clock_ns()
        if fault is not None and fault.blame is Blame.BUSY:
            busy_s = min(retry_after_s if retry_after_s is not None else BUSY_S, _LONGEST_BUSY_S)
            self._circuits.note_busy(column, now_ns + int(busy_s * 1e9))
        success = success_of(fault)
        if success:
            self._circuits.note_success(column)
        elif success is False:
            in_a_row = self._circuits.note_failure(column, now_ns)
            if config.circuit_breaker.enabled and not trial:
                self._open_if_due(backend, config, now_ns, in_a_row)
        if trial:
            try:
                self._after_trial(backend, fault, config, now_ns)
            finally:
                self._circuits.end_trial(column)

    def proved(self, backend: Backend) -> None:
        """A trial has shown that the backend is well, though the attempt goes on: a stream that has come far."""
        self._circuits.close_circuit(backend.column, self._clock_ns())
        self._circuits.end_trial(backend.column)
        log.info("circuit closed", extra={"backend": backend.name})

    def _open_if_due(self, backend: Backend, config: Config, now_ns: int, in_a_row: int) -> None:
        settings, circuit = config.circuit_breaker, self._circuits.read(backend.column)
        if circuit.open_until:
            return
        successes, failures = self._load.outcomes(backend.column, now_ns, since_ns=circuit.recovered)
        if not should_open(successes, failures, settings, share=config.quality.error_rate_threshold, in_a_row=in_a_row):
            return
        lately = circuit.recovered and now_ns - circuit.recovered < settings.max_open_seconds * 1e9
        trips = circuit.trips + 1 if lately else 1
        seconds = open_for_s(trips, settings, chance=self._chance())
        if self._circuits.open(backend.column, until_ns=now_ns + int(seconds * 1e9), trips=trips):
            self._recorder.circuit_opened(backend.label)
            log.warning(
                "circuit opened",
                extra={
                    "backend": backend.name, "failures": failures, "successes": successes, "for_s": round(seconds, 1),
                },
            )  # fmt: skip

    def _after_trial(self, backend: Backend, fault: Fault | None, config: Config, now_ns: int) -> None:
        if fault is not None and fault.name in _TELLS_NOTHING:
            return  # the next request tries
        column = backend.column
        if fault is None or fault.blame is not Blame.BACKEND:
            self._circuits.close_circuit(column, now_ns)
            log.info("circuit closed", extra={"backend": backend.name})
            return
        trips = self._circuits.read(column).trips + 1
        seconds = open_for_s(trips, config.circuit_breaker, chance=self._chance())
        self._circuits.keep_open(column, until_ns=now_ns + int(seconds * 1e9), trips=trips)
        log.info("circuit stays open", extra={"backend": backend.name, "for_s": round(seconds, 1)})
