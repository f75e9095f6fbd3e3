"""Recording a finished request: the one place where its figures move.

Children are resolved once per label set and kept: resolving costs a hundred times what counting does.
"""

from __future__ import annotations

import time
from _thread import RLock  # keeps threads apart, and costs greenlets nothing: nothing below switches them
from typing import Any

import msgspec

from nexus.fleet.load import Row
from nexus.fleet.seat import Seat
from nexus.metrics import families
from nexus.metrics.store import Store


class StreamFacts(msgspec.Struct, kw_only=True, gc=False):
    """What a stream came to whose content had begun. `end` is one of `STREAM_ENDS`; `tpot_by` says what was counted."""

    end: str
    events: int
    longest_gap_s: float
    tpot_s: float | None = None
    tpot_by: str = "tokens"


class Finished(msgspec.Struct, kw_only=True, gc=False):
    """What a request came to, in label values; `status` as the client saw it (contract: 499, 502, 504 for its ends).

    `usage` is where the tokens are known from, None for a request that no backend served; `before_s` and `after_s` are
    the time that it took in the gateway itself.
    """

    model: str
    backend: str
    status: str
    duration_s: float
    error_type: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None
    usage: str | None = None
    fallback_from: str | None = None
    stream: StreamFacts | None = None
    before_s: float | None = None
    after_s: float | None = None


class _Bundle:
    """What requests that share their labels move by one, resolved once for all of them."""

    def __init__(self, recorder: Recorder, request: Finished) -> None:
        child = recorder.child
        self._recorder = recorder
        self._labels = request.model, request.backend
        self._prompt: Any = None
        self._completion: Any = None
        self.duration = child(families.DURATION, *self._labels)
        self.once: list[tuple[Any, float]] = [(child(families.REQUESTS, *self._labels, request.status), 1)]
        if request.error_type is not None:
            self.once.append((child(families.ERRORS, request.error_type, request.model), 1))
        if request.fallback_from is not None:
            self.once.append((child(families.FALLBACKS, request.fallback_from, request.model), 1))
        if request.usage is not None:
            self.once.append((child(families.USAGE, request.usage), 1))

    def prompt(self) -> Any:
        if self._prompt is None:
            self._prompt = self._recorder.child(families.TOKENS_USED, *self._labels, "prompt")
        return self._prompt

    def completion(self) -> Any:
        if self._completion is None:
            self._completion = self._recorder.child(families.TOKENS_USED, *self._labels, "completion")
        return self._completion


class Recorder:
    """Counts for one process. Safe from any greenlet or thread of it."""

    def __init__(self, store: Store, seat: Seat) -> None:
        self._store = store
        self._row: Row = seat.row
        self._lock = RLock()
        self._children: dict[tuple[str, ...], Any] = {}
        store.child(families.LOST)  # there from the start, so that a rate of it is
        self._unknown_models = store.child(families.UNKNOWN_MODELS)
        self._decision = store.child(families.DECISION)
        self._queue_wait = store.child(families.QUEUE_WAIT)
        self._before = store.child(families.OVERHEAD, ("before",))
        self._after = store.child(families.OVERHEAD, ("after",))
        self._started: dict[str, Any] = {}
        self._bundles: dict[tuple[str | None, ...], _Bundle] = {}

    def child(self, family: families.Family, *labels: str) -> Any:
        """The counter or histogram with these label values; kept, since making it is slow."""
        key = (family.name, *labels)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = self._store.child(family, labels)
        return child

    def started(self, endpoint: str) -> None:
        with self._lock:
            row, counter = self._row, self._started.get(endpoint)
            if counter is None:
                counter = self._started[endpoint] = self._store.child(families.STARTED, (endpoint,))
            row.turn()
            counter.inc()
            row.enter(time.monotonic_ns())
            row.turn()

    def attempt_began(self, column: int) -> None:
        with self._lock:
            self._row.begin(column)

    def attempt_ended(self, column: int, backend: str, outcome: str, *, success: bool | None) -> None:
        """Count an attempt's end; `success` as it speaks for or against the backend, None where it says nothing."""
        with self._lock:
            self._row.end(column)
            self.child(families.ATTEMPTS, backend, outcome).inc()
            if success is not None:
                self._row.count_outcome(column, time.monotonic_ns(), success=success)

    def attempt_repeated(self, backend: str, error_type: str) -> None:
        """An attempt was made once more at the same place, in another form."""
        with self._lock:
            self.child(families.ATTEMPTS, backend, error_type).inc()
            self.child(families.RETRIES, backend, error_type).inc()

    def stream_began(self) -> None:
        with self._lock:
            self._row.stream(1)

    def first_token(self, model: str, backend: str, seconds: float) -> None:
        with self._lock:
            self.child(families.TTFT, model, backend).observe(seconds)

    def loop_lag(self, seconds: float) -> None:
        with self._lock:
            self.child(families.LOOP_LAG).observe(seconds)

    def finished(self, request: Finished) -> None:
        """Count a request that ended. The row's sequence number is odd meanwhile, for readers to look again."""
        with self._lock:
            # Resolved first: making a child takes a hundred times as long as counting, and readers would wait for it.
            counters, observed = self._moved_by(request)
            self._row.turn()
            for counter, amount in counters:
                counter.inc(amount)
            for histogram, amount in observed:
                histogram.observe(amount)
            self._row.leave()
            if request.stream is not None:
                self._row.stream(-1)
            self._row.turn()

    def _moved_by(self, request: Finished) -> tuple[list[tuple[Any, float]], list[tuple[Any, float]]]:
        """Counters and histograms that a request moves, each with by how much."""
        key = (
            request.model, request.backend, request.status, request.error_type, request.fallback_from, request.usage,
        )  # fmt: skip
        bundle = self._bundles.get(key)
        if bundle is None:
            bundle = self._bundles[key] = _Bundle(self, request)
        counters = bundle.once.copy()
        observed: list[tuple[Any, float]] = [(bundle.duration, request.duration_s)]
        if request.prompt_tokens is not None:
            observed.append((bundle.prompt(), request.prompt_tokens))
        if request.completion_tokens is not None:
            observed.append((bundle.completion(), request.completion_tokens))
        if request.before_s is not None:
            observed.append((self._before, request.before_s))
        if request.after_s is not None:
            observed.append((self._after, request.after_s))
        if request.cached_tokens or request.reasoning_tokens or request.stream is not None:
            self._add_rarer(request, counters, observed)
        return counters, observed

    def _add_rarer(
        self, request: Finished, counters: list[tuple[Any, float]], observed: list[tuple[Any, float]]
    ) -> None:
        model, backend, child = request.model, request.backend, self.child
        if request.cached_tokens:
            counters.append((child(families.TOKEN_DETAILS, model, backend, "cached"), request.cached_tokens))
        if request.reasoning_tokens:
            counters.append((child(families.TOKEN_DETAILS, model, backend, "reasoning"), request.reasoning_tokens))
        if (stream := request.stream) is not None:
            counters.append((child(families.STREAM_ENDS, backend, stream.end), 1))
            counters.append((child(families.STREAM_EVENTS, model, backend), stream.events))
            observed.append((child(families.STREAM_GAP, model, backend), stream.longest_gap_s))
            if stream.tpot_s is not None:
                observed.append((child(families.TPOT, model, backend, stream.tpot_by), stream.tpot_s))

    def retried(self, backend: str, error_type: str) -> None:
        with self._lock:
            self.child(families.RETRIES, backend, error_type).inc()
            self._row.count_retry(time.monotonic_ns())

    def retry_denied(self, backend: str) -> None:
        with self._lock:
            self.child(families.RETRIES_DENIED, backend).inc()

    def decided(self, seconds: float) -> None:
        with self._lock:
            self._decision.observe(seconds)

    def circuit_opened(self, backend: str) -> None:
        with self._lock:
            self.child(families.CIRCUIT_OPENED, backend).inc()

    def queued(self, column: int) -> None:
        """A request began to wait; it is shown at the backend in `column` until `unqueued`."""
        with self._lock:
            self._row.queue(column, 1)

    def unqueued(self, column: int, waited_s: float) -> None:
        with self._lock:
            self._row.queue(column, -1)
            self._queue_wait.observe(waited_s)

    def queue_rejected(self, reason: str) -> None:
        with self._lock:
            self.child(families.QUEUE_REJECTIONS, reason).inc()

    def unknown_model(self) -> None:
        with self._lock:
            self._unknown_models.inc()

    def rejected(self, reason: str) -> None:
        with self._lock:
            self.child(families.REJECTED, reason).inc()

    def probed(self, backend: str, latency_s: float) -> None:
        with self._lock:
            self.child(families.PROBE_LATENCY, backend).observe(latency_s)
