"""Passive health checks: what the ends of requests say about backends, shared with all workers of
the host.

Failures go to the circuit breakers (`fleet/circuit_breaker.py`); a backend that says it is busy is
left alone for a while.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

from nexus.config import Config
from nexus.errors import Blame, Fault
from nexus.fleet.circuit_breaker import Event, report
from nexus.fleet.circuits import CircuitTable
from nexus.fleet.load_table import WINDOW_S, LoadTable
from nexus.fleet.records import Backend
from nexus.fleet.status import CLEAR, EndpointStatus, status_of
from nexus.metrics.recorder import Recorder
from nexus.routing.router import Choice

log = logging.getLogger("nexus.proxy")

BUSY_S = 1.0
"""How long a backend counts as busy if it did not say when to come back."""
_MAX_BUSY_S = 60.0
_INCONCLUSIVE = frozenset(
    {
        "client_gone",
        "shutdown",
        "stopping",
        "out_of_time",
        "internal",
        "at_capacity",
        "backend_key_unusable",
    }
)
"""Faults that say nothing about the backend."""
REFUSED = frozenset({"backend_4xx", "context_exceeded"})
"""Faults by which a backend says that the request itself is wrong."""
_BEFORE_REQUEST = frozenset({"connect_failed", "dns_failed", "connect_timeout", "tls_failed"})
"""Failures that no request can cause by its content."""


class Attempted(Protocol):
    """An attempt that has ended, or has reached the first content of a stream.

    `probe_lease_ns` is when its lease as the half-open probe ends; 0 if it is none.
    """

    @property
    def choice(self) -> Choice: ...
    @property
    def config(self) -> Config: ...
    @property
    def probe_lease_ns(self) -> int: ...


class Evidence:
    """What one request saw of the backends that it tried, and which of its failures count against
    them.

    A failure that the request itself may have caused is kept until the request ends. It counts if
    another attempt is served, or if no other backend saw the request fail. It does not count if the
    request failed at several backends, or if another backend refused it as wrong. A request counts
    at most one failure against each backend.
    """

    def __init__(self, health: PassiveHealth) -> None:
        self._health = health
        self._undecided: list[Attempted] = []
        self._counted: set[int] = set()

    def failed(self, attempt: Attempted, fault: Fault, *, served: bool) -> None:
        """Record a failed attempt; `served`: it had reached the first content of a stream."""
        if served or fault.code in _BEFORE_REQUEST:
            self._count(attempt)
        else:
            self._undecided.append(attempt)

    def served(self) -> None:
        """The request was served, so it did not cause the failures before: they count."""
        for attempt in self._undecided:
            self._count(attempt)
        self._undecided.clear()

    def refused(self) -> None:
        """A backend refused the request as wrong, so the request caused the failures before:
        they do not count."""
        for attempt in self._undecided:
            self._health.release_probe_lease(attempt)
        self._undecided.clear()

    def close(self) -> None:
        """The request has ended: decide about the remaining failures."""
        if len({attempt.choice.backend.column for attempt in self._undecided}) == 1:
            self.served()
        self.refused()

    def _count(self, attempt: Attempted) -> None:
        column = attempt.choice.backend.column
        if column not in self._counted:
            self._counted.add(column)
            self._health.failed(attempt)
        else:
            self._health.release_probe_lease(attempt)


class PassiveHealth:
    """Reports the ends of attempts. Safe from any greenlet or thread."""

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

    def status(self, column: int, model: str, config: Config) -> EndpointStatus:
        """Return a backend's status, and forget what has expired. A clean record costs one
        memory read."""
        if not self._circuits.dirty[column]:
            return CLEAR
        now_ns = self._clock_ns()
        kept_s = max(WINDOW_S, config.circuit_breaker.slow_start_seconds)
        self._circuits.clear_if_expired(column, now_ns - int(kept_s * 1e9))
        return status_of(column, model, self._circuits, self._load, config=config, now_ns=now_ns)

    def acquire_probe_lease(self, backend: Backend, config: Config) -> int:
        """Acquire the right to be the half-open probe for `open_seconds`.

        Returns when the lease ends, or 0 if another request holds one.
        """
        now_ns = self._clock_ns()
        until_ns = now_ns + int(config.circuit_breaker.open_seconds * 1e9)
        acquired = self._circuits.acquire_probe_lease(backend.column, now_ns, until_ns)
        return until_ns if acquired else 0

    def release_probe_lease(self, attempt: Attempted) -> None:
        if attempt.probe_lease_ns:
            column = attempt.choice.backend.column
            self._circuits.release_probe_lease(column, attempt.probe_lease_ns)

    def served(self, attempt: Attempted) -> None:
        """The backend gave a whole response, or the first content of a stream."""
        self._circuits.record_success(attempt.choice.backend.column)
        if attempt.probe_lease_ns:
            self._report(Event.PROBE_CONFIRMED, attempt)

    def blameless(self, attempt: Attempted, fault: Fault, retry_after_s: float | None) -> None:
        """An attempt ended with a fault that does not count against the backend."""
        column, model = attempt.choice.backend.column, attempt.choice.model
        if fault.blame is Blame.BUSY:
            busy_s = min(retry_after_s if retry_after_s is not None else BUSY_S, _MAX_BUSY_S)
            until_ns = self._clock_ns() + int(busy_s * 1e9)
            if fault.per_model:
                self._circuits.record_model_busy(column, model, until_ns)
            else:
                self._circuits.record_busy(column, until_ns)
        if fault.code == "backend_lacks_model":
            self._circuits.request_health_probe(column)
        if fault.code in _INCONCLUSIVE:
            self.release_probe_lease(attempt)  # the next request probes
        elif attempt.probe_lease_ns:
            self._report(Event.PROBE_CONFIRMED, attempt)

    def failed(self, attempt: Attempted) -> None:
        """A failure counts against the backend."""
        column = attempt.choice.backend.column
        self._recorder.backend_failed(column)
        self._circuits.record_failure(column, self._clock_ns())
        if attempt.probe_lease_ns:
            self._report(Event.PROBE_FAILED, attempt)
            self.release_probe_lease(attempt)
        else:
            self._report(Event.FAILURE, attempt)

    def _report(self, event: Event, attempt: Attempted) -> None:
        """Report an event to the backend's circuit breaker, and record what came of it."""
        backend = attempt.choice.backend
        transition = report(
            event,
            backend.column,
            self._circuits,
            self._load,
            config=attempt.config,
            now_ns=self._clock_ns(),
            chance=self._chance(),
        )
        if transition is None:
            return
        shown: dict[str, object] = {"backend": backend.name}
        if transition.effect == "opened":
            self._recorder.circuit_opened(backend.label)
            shown |= {"failures": transition.failures, "successes": transition.successes}
            log.warning("circuit opened", extra=shown | {"for_s": round(transition.open_s, 1)})
        elif transition.effect == "reopened":
            log.info("circuit stays open", extra=shown | {"for_s": round(transition.open_s, 1)})
        else:
            log.info("circuit closed", extra=shown)
