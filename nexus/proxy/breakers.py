"""What requests see of the backends, told to all workers: circuits that open and close, and who said it is busy."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

from nexus.config import Config
from nexus.errors import Blame, Fault
from nexus.fleet.circuits import CircuitTable
from nexus.fleet.load_table import WINDOW_S, LoadTable
from nexus.fleet.records import Backend
from nexus.fleet.status import CLEAR, EndpointStatus, status_of
from nexus.metrics.recorder import Recorder
from nexus.routing.circuit import open_for_s, should_open
from nexus.routing.router import Choice

log = logging.getLogger("nexus.proxy")

BUSY_S = 1.0
"""For how long a backend counts as busy that did not say when to come back."""
_LONGEST_BUSY_S = 60.0
_TELLS_NOTHING = frozenset(
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
"""Ends of an attempt that say nothing of the backend."""
REFUSED = frozenset({"backend_4xx", "context_exceeded"})
"""Faults by which a backend says that the request itself is wrong."""
_BEFORE_THE_REQUEST = frozenset({"connect_failed", "dns_failed", "connect_timeout", "tls_failed"})
"""Failures that no request can bring about by what it asks."""


class Attempted(Protocol):
    """An attempt at a backend that has ended, or has come to its first content. `lease_ns`: until when it had the
    right to be the half-open probe; 0 if it had not."""

    @property
    def choice(self) -> Choice: ...
    @property
    def config(self) -> Config: ...
    @property
    def probe_lease_ns(self) -> int: ...


class Evidence:
    """What one request has seen of the backends that it tried, and which of them that counts against.

    A failure that the request itself may have caused waits for the request's end. It counts against its backend when
    another attempt is served, or when no other backend has seen the request fail. It counts against none when the
    request has failed at several, or when another backend has refused it as wrong. Each backend has at most one failure
    counted for each request.
    """

    def __init__(self, breakers: Breakers) -> None:
        self._breakers = breakers
        self._waiting: list[Attempted] = []
        self._counted: set[int] = set()

    def failed(self, attempt: Attempted, fault: Fault, *, served: bool) -> None:
        """An attempt has failed; `served` says that it had come to its first content."""
        if served or fault.code in _BEFORE_THE_REQUEST:
            self._count(attempt)
        else:
            self._waiting.append(attempt)

    def served(self) -> None:
        """The request is served, so that what failed before was not its fault."""
        for attempt in self._waiting:
            self._count(attempt)
        self._waiting.clear()

    def refused(self) -> None:
        """A backend has refused the request as wrong, so that what failed before was the request's fault."""
        for attempt in self._waiting:
            self._breakers.release_probe_lease(attempt)
        self._waiting.clear()

    def close(self) -> None:
        """The request has come to its end."""
        if len({attempt.choice.backend.column for attempt in self._waiting}) == 1:
            self.served()
        self.refused()

    def _count(self, attempt: Attempted) -> None:
        column = attempt.choice.backend.column
        if column not in self._counted:
            self._counted.add(column)
            self._breakers.failed(attempt)
        else:
            self._breakers.release_probe_lease(attempt)


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

    def status(self, column: int, model: str, config: Config) -> EndpointStatus:
        """How the backend stands now. Costs one look into shared memory where there is nothing to tell."""
        if not self._circuits.dirty[column]:
            return CLEAR
        now_ns = self._clock_ns()
        self._circuits.clear_if_expired(
            column, now_ns - int(max(WINDOW_S, config.circuit_breaker.slow_start_seconds) * 1e9)
        )
        return status_of(column, model, self._circuits, self._load, config=config, now_ns=now_ns)

    def acquire_probe_lease(self, backend: Backend, config: Config) -> int:
        """Take the right to be the request that tries a backend whose circuit is half open, for `open_seconds`; gives
        the end of the lease, 0 if another request has it."""
        now_ns = self._clock_ns()
        until_ns = now_ns + int(config.circuit_breaker.open_seconds * 1e9)
        return (
            until_ns if self._circuits.acquire_probe_lease(backend.column, now_ns, until_ns) else 0
        )

    def release_probe_lease(self, attempt: Attempted) -> None:
        if attempt.probe_lease_ns:
            self._circuits.release_probe_lease(
                attempt.choice.backend.column, attempt.probe_lease_ns
            )

    def served(self, attempt: Attempted) -> None:
        """The backend has answered, or has come to the first content of a stream."""
        self._circuits.record_success(attempt.choice.backend.column)
        if attempt.probe_lease_ns:
            self._close(attempt.choice.backend)

    def blameless(self, attempt: Attempted, fault: Fault, retry_after_s: float | None) -> None:
        """An attempt has ended with a fault that does not count against the backend."""
        column, model = attempt.choice.backend.column, attempt.choice.model
        if fault.blame is Blame.BUSY:
            busy_s = min(retry_after_s if retry_after_s is not None else BUSY_S, _LONGEST_BUSY_S)
            until_ns = self._clock_ns() + int(busy_s * 1e9)
            if fault.per_model:
                self._circuits.record_model_busy(column, model, until_ns)
            else:
                self._circuits.record_busy(column, until_ns)
        if fault.code == "backend_lacks_model":
            self._circuits.request_health_probe(column)
        if fault.code in _TELLS_NOTHING:
            self.release_probe_lease(attempt)  # the next request tries
        elif attempt.probe_lease_ns:
            self._close(attempt.choice.backend)

    def failed(self, attempt: Attempted) -> None:
        """A failure counts against the backend."""
        backend, config, now_ns = attempt.choice.backend, attempt.config, self._clock_ns()
        self._recorder.backend_failed(backend.column)
        in_a_row = self._circuits.record_failure(backend.column, now_ns)
        if attempt.probe_lease_ns:
            self._keep_open(backend, config, now_ns)
            self.release_probe_lease(attempt)
        elif config.circuit_breaker.enabled:
            self._open_if_due(backend, config, now_ns, in_a_row)

    def _close(self, backend: Backend) -> None:
        """Close the circuit after a half-open probe; one whose lease has ended meanwhile counts as well."""
        now_ns = self._clock_ns()
        if self._circuits.state(backend.column, now_ns) != "closed":
            self._circuits.close_circuit(backend.column, now_ns)
            log.info("circuit closed", extra={"backend": backend.name})

    def _open_if_due(self, backend: Backend, config: Config, now_ns: int, in_a_row: int) -> None:
        settings, circuit = config.circuit_breaker, self._circuits.read(backend.column)
        if circuit.open_until:
            return
        successes, failures = self._load.outcomes(
            backend.column, now_ns, since_ns=circuit.recovered
        )
        if not should_open(
            successes,
            failures,
            settings,
            share=config.quality.error_rate_threshold,
            in_a_row=in_a_row,
        ):
            return
        lately = circuit.recovered and now_ns - circuit.recovered < settings.max_open_seconds * 1e9
        consecutive_opens = circuit.consecutive_opens + 1 if lately else 1
        seconds = open_for_s(consecutive_opens, settings, chance=self._chance())
        if self._circuits.open(
            backend.column,
            until_ns=now_ns + int(seconds * 1e9),
            consecutive_opens=consecutive_opens,
        ):
            self._recorder.circuit_opened(backend.label)
            log.warning(
                "circuit opened",
                extra={
                    "backend": backend.name, "failures": failures, "successes": successes, "for_s": round(seconds, 1),
                },
            )  # fmt: skip

    def _keep_open(self, backend: Backend, config: Config, now_ns: int) -> None:
        circuit = self._circuits.read(backend.column)
        if not circuit.open_until:
            return  # closed meanwhile, by another request or a good probe
        seconds = open_for_s(
            circuit.consecutive_opens + 1, config.circuit_breaker, chance=self._chance()
        )
        self._circuits.keep_open(
            backend.column,
            until_ns=now_ns + int(seconds * 1e9),
            consecutive_opens=circuit.consecutive_opens + 1,
        )
        log.info("circuit stays open", extra={"backend": backend.name, "for_s": round(seconds, 1)})
