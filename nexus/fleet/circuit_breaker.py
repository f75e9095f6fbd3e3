"""The circuit breaker of a backend: a state machine over a record that all processes share.

    closed → open: too many requests fail.
    open → half-open: its time is over, or health probes succeed again.
    half-open → open: the half-open probe fails.
    half-open → closed: the half-open probe is confirmed, or health probes pass and none was tried.

While a circuit is open, requests go to other backends. While it is half open, one request at a time
holds a lease and is the half-open probe. Routing gets the state from `fleet/status.py`. After
the circuit has closed, traffic returns by slow start.
"""

from __future__ import annotations

from dataclasses import replace
from enum import Enum
from typing import Literal

import msgspec

from nexus.config import Config
from nexus.config.routing_records import CircuitBreaker as Settings
from nexus.fleet.circuits import Circuit, CircuitTable
from nexus.fleet.load_table import LoadTable

_JITTER = 0.1
_MAX_DOUBLINGS = 16


class Event(Enum):
    """What may change the state of a circuit."""

    FAILURE = "a request failed that was not the half-open probe"
    PROBE_CONFIRMED = "the half-open probe succeeded"
    PROBE_FAILED = "the half-open probe failed"
    HEALTH_RECOVERED = "health probes succeed again"
    HEALTH_PASSED = "another health probe succeeded"


class Transition(msgspec.Struct, frozen=True):
    """A change of a circuit.

    Attributes:
        circuit: The record after it.
        effect: What happened.
        open_s: Seconds for which the circuit is open now.
        successes, failures: Requests in the last window, if they decided.
    """

    circuit: Circuit
    effect: Literal["opened", "reopened", "half_opened", "closed"]
    open_s: float = 0.0
    successes: int = 0
    failures: int = 0


class CircuitBreaker(msgspec.Struct, frozen=True, kw_only=True):
    """The state machine. Each state is a method that takes an event and returns the transition, or
    None for no change.

    Attributes:
        circuit: The record as it was read.
        settings: What the configuration says.
        error_rate: Share of failures in the window that opens a circuit.
        now_ns: The time on the host's monotonic clock.
        successes, failures: Requests in the last window, since the circuit last closed.
        chance: A random number in [0, 1), for the jitter.
    """

    circuit: Circuit
    settings: Settings
    now_ns: int
    error_rate: float = 0.5
    successes: int = 0
    failures: int = 0
    chance: float = 0.5

    def handle(self, event: Event) -> Transition | None:
        match self.circuit.state(self.now_ns):
            case "closed":
                return self.closed(event)
            case "open":
                return self.open(event)
            case "half_open":
                return self.half_open(event)

    def closed(self, event: Event) -> Transition | None:
        """Requests pass. Too many failures open the circuit; a probe that ends after its lease
        changes nothing."""
        settings, recovered = self.settings, self.circuit.recovered
        if event is not Event.FAILURE or not settings.enabled or not self._too_many_failures():
            return None
        relapsed = recovered and self.now_ns - recovered < settings.max_open_seconds * 1e9
        return self._open("opened", self.circuit.consecutive_opens + 1 if relapsed else 1)

    def open(self, event: Event) -> Transition | None:
        """Requests go elsewhere. A half-open probe whose lease has ended may still be under way."""
        if event is Event.HEALTH_RECOVERED:
            return Transition(replace(self.circuit, open_until=self.now_ns), "half_opened")
        return self._probed(event)

    def half_open(self, event: Event) -> Transition | None:
        """One request at a time probes the backend.

        Health probes close the circuit only if no request probed it for `open_seconds`: a backend
        may pass health probes while its requests hang.
        """
        if event is Event.HEALTH_PASSED and not self.circuit.probe_lease:
            waited_ns = self.now_ns - self.circuit.open_until
            return self._close() if waited_ns >= self.settings.open_seconds * 1e9 else None
        return self._probed(event)

    def _probed(self, event: Event) -> Transition | None:
        """What the result of a half-open probe does; None for another event."""
        if event is Event.PROBE_CONFIRMED:
            return self._close()
        if event is Event.PROBE_FAILED:
            return self._open("reopened", self.circuit.consecutive_opens + 1)
        return None

    def _too_many_failures(self) -> bool:
        """Whether enough requests failed in a row, or in the last window and of all in it."""
        least = self.settings.failures
        if self.circuit.failures_in_a_row >= least:
            return True
        total = self.successes + self.failures
        return self.failures >= least and self.failures >= self.error_rate * total

    def _open(self, effect: Literal["opened", "reopened"], consecutive_opens: int) -> Transition:
        open_s = open_for_s(consecutive_opens, self.settings, chance=self.chance)
        open_until = self.now_ns + int(open_s * 1e9)
        circuit = replace(self.circuit, open_until=open_until, consecutive_opens=consecutive_opens)
        return Transition(circuit, effect, open_s, self.successes, self.failures)

    def _close(self) -> Transition:
        circuit = replace(
            self.circuit, open_until=0, recovered=self.now_ns, failures_in_a_row=0, probe_lease=0
        )
        return Transition(circuit, "closed")


def open_for_s(consecutive_opens: int, settings: Settings, *, chance: float) -> float:
    """Return how long a circuit stays open: doubled each time, with jitter.

    The jitter keeps backends that failed together from being probed together.
    """
    doublings = min(consecutive_opens - 1, _MAX_DOUBLINGS)
    seconds: float = min(settings.open_seconds * 2**doublings, settings.max_open_seconds)
    return seconds * (1 + _JITTER * (2 * chance - 1))


def report(
    event: Event,
    column: int,
    circuits: CircuitTable,
    load: LoadTable,
    *,
    config: Config,
    now_ns: int,
    chance: float = 0.5,
) -> Transition | None:
    """Report an event to the circuit breaker of the backend in `column`.

    Returns the transition that it caused. None if there was none, or if another process opened the
    circuit first.
    """
    circuit = circuits.read(column)
    successes = failures = 0
    if event is Event.FAILURE and not circuit.open_until:
        successes, failures = load.outcomes(column, now_ns, since_ns=circuit.recovered)
    breaker = CircuitBreaker(
        circuit=circuit,
        settings=config.circuit_breaker,
        error_rate=config.quality.error_rate_threshold,
        now_ns=now_ns,
        successes=successes,
        failures=failures,
        chance=chance,
    )
    transition = breaker.handle(event)
    if transition is None or not circuits.store(column, circuit, transition.circuit):
        return None
    return transition
