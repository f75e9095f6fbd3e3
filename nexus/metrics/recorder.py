"""Recording a finished request: the one place where its figures move.

Children are resolved once per label set and kept: resolving costs more than counting.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

from nexus.fleet.load import Row
from nexus.fleet.seat import Seat
from nexus.metrics import families
from nexus.metrics.store import Store


@dataclass(slots=True, kw_only=True)
class Finished:
    """What a request came to, in label values; `status` as the client saw it (contract: 499, 502, 504 for its ends)."""

    model: str
    backend: str
    status: str
    duration_s: float
    error_type: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    fallback_from: str | None = None


class Recorder:
    """Counts for one process. Safe from any greenlet or thread of it."""

    def __init__(self, store: Store, seat: Seat) -> None:
        self._store = store
        self._row: Row = seat.row
        # Threaded servers need it; under gevent nothing below switches greenlets, and it is never contended.
        self._lock = threading.Lock()
        self._children: dict[tuple[str, ...], Any] = {}
        store.child(families.LOST)  # there from the start, so that a rate of it is
        self._unknown_models = store.child(families.UNKNOWN_MODELS)

    def _child(self, family: families.Family, *labels: str) -> Any:
        key = (family.name, *labels)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = self._store.child(family, labels)
        return child

    def started(self, endpoint: str) -> None:
        with self._lock:
            counter = self._child(families.STARTED, endpoint)
            self._row.turn()
            counter.inc()
            self._row.enter()
            self._row.turn()

    def attempt_began(self, column: int) -> None:
        with self._lock:
            self._row.begin(column)

    def attempt_ended(self, column: int, backend: str, outcome: str) -> None:
        with self._lock:
            self._row.end(column)
            self._child(families.ATTEMPTS, backend, outcome).inc()

    def finished(self, request: Finished) -> None:
        """Count a request that ended. The row's sequence number is odd meanwhile, for readers to look again."""
        model, backend = request.model, request.backend
        with self._lock:
            # Resolved first: making a child takes a hundred times as long as counting, and readers would wait for it.
            counters = [self._child(families.REQUESTS, model, backend, request.status)]
            if request.error_type is not None:
                counters.append(self._child(families.ERRORS, request.error_type, model))
            if request.fallback_from is not None:
                counters.append(self._child(families.FALLBACKS, request.fallback_from, model))
            observed = [(self._child(families.DURATION, model, backend), request.duration_s)]
            if request.prompt_tokens is not None:
                observed.append((self._child(families.TOKENS_USED, model, backend, "prompt"), request.prompt_tokens))
            if request.completion_tokens is not None:
                child = self._child(families.TOKENS_USED, model, backend, "completion")
                observed.append((child, request.completion_tokens))
            self._row.turn()
            for counter in counters:
                counter.inc()
            for histogram, amount in observed:
                histogram.observe(amount)
            self._row.leave()
            self._row.turn()

    def retried(self, backend: str, error_type: str) -> None:
        with self._lock:
            self._child(families.RETRIES, backend, error_type).inc()

    def unknown_model(self) -> None:
        with self._lock:
            self._unknown_models.inc()

    def rejected(self, reason: str) -> None:
        with self._lock:
            self._child(families.REJECTED, reason).inc()

    def probed(self, backend: str, latency_s: float) -> None:
        with self._lock:
            self._child(families.PROBE_LATENCY, backend).observe(latency_s)
