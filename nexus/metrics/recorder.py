"""Recording a finished request: the one place where its metrics change.

Children are resolved once per label set and kept: resolving costs a hundred times what counting
does.
"""

from __future__ import annotations

import time
from _thread import RLock  # excludes threads; no code below switches greenlets
from collections.abc import Sequence
from typing import Any

from nexus.errors import status_label
from nexus.fleet.load_table import Row
from nexus.fleet.outcome import Outcome
from nexus.fleet.slot_lease import SlotLease
from nexus.metrics import access_families, cost_families, families, gateway_families
from nexus.metrics.family import Family
from nexus.metrics.request_series import Bundle, Move, RarerSeries
from nexus.metrics.store import Store
from nexus.metrics.usage import UsageStore
from nexus.runtime import stderr


class Recorder:
    """Counts for one process. Safe from any greenlet or thread of it."""

    def __init__(self, store: Store, slot_lease: SlotLease) -> None:
        self._store = store
        self._usage = (
            UsageStore(slot_lease.generation.usage, slot_lease.slot)
            if slot_lease.generation
            else None
        )
        self._row: Row = slot_lease.row
        self._lock = RLock()
        self._children: dict[tuple[str, ...], Any] = {}
        store.child(families.LOST)  # from the start, so that rates of these exist
        store.child(families.PREFLIGHTS)
        store.child(access_families.LIMIT_UNTRACKED)
        store.child(cost_families.LEDGER_ERRORS)
        store.child(access_families.LIMIT_LOCK_MISSES)
        self._unknown_models = store.child(families.UNKNOWN_MODELS)
        self._decision = store.child(families.DECISION)
        self._queue_wait = store.child(families.QUEUE_WAIT)
        self._before = store.child(families.OVERHEAD, ("before",))
        self._after = store.child(families.OVERHEAD, ("after",))
        self._dropped_lines = store.child(gateway_families.LOG_LINES_DROPPED)
        self._dropped_before = stderr.dropped_lines()  # those before are in another file
        self._started: dict[str, Any] = {}
        self._attempts: dict[tuple[str, str], Any] = {}
        self._rarer = RarerSeries(self.child, self._usage).moves
        self._bundles: dict[tuple[object, ...], Bundle] = {}

    def child(self, family: Family, *labels: str) -> Any:
        """The counter or histogram with these label values; kept, since making it is slow."""
        key = (family.name, *labels)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = self._store.child(family, labels)
        return child

    def _count(self, family: Family, *labels: str, by: float = 1) -> None:
        with self._lock:
            self.child(family, *labels).inc(by)

    def _observe(self, family: Family, value: float, *labels: str) -> None:
        with self._lock:
            self.child(family, *labels).observe(value)

    def close(self) -> None:
        """Close the file of usage; nothing may be counted afterwards."""
        if self._usage is not None:
            self._usage.close()

    def request_started(self, endpoint: str) -> None:
        with self._lock:
            row, counter = self._row, self._started.get(endpoint)
            if counter is None:
                counter = self._started[endpoint] = self._store.child(families.STARTED, (endpoint,))
            row.write_begin()
            counter.inc()
            row.request_started(time.monotonic_ns())
            row.write_end()

    def attempt_started(self, column: int | None, decision_s: float) -> None:
        """Record how long it took to choose a backend; the attempt is in flight in `column`."""
        with self._lock:
            self._decision.observe(decision_s)
            if column is not None:
                self._row.attempt_started(column)

    def attempt_ended(
        self, column: int, backend: str, outcome: str, *, success: bool, in_flight: bool = True
    ) -> None:
        """Count an attempt's end; a failure may count against the backend later
        (`backend_failed`)."""
        with self._lock:
            counter = self._attempts.get((backend, outcome))
            if counter is None:
                counter = self._attempts[backend, outcome] = self.child(
                    families.ATTEMPTS, backend, outcome
                )
            counter.inc()
            if in_flight:
                self._row.attempt_ended(column)
            if success:
                self._row.count_outcome(column, time.monotonic_ns(), success=True)

    def backend_failed(self, column: int) -> None:
        """A failure counts against the backend."""
        with self._lock:
            self._row.count_outcome(column, time.monotonic_ns(), success=False)

    def attempt_repeated(self, backend: str, error_type: str) -> None:
        """Count an attempt that was repeated at the same backend in another form."""
        with self._lock:
            self.child(families.ATTEMPTS, backend, error_type).inc()
            self.child(families.RETRIES, backend, error_type).inc()

    def stream_started(self) -> None:
        with self._lock:
            self._row.add_streams(1)

    def first_token(self, model: str, backend: str, seconds: float) -> None:
        self._observe(families.TTFT, seconds, model, backend)

    def stream_ping(self) -> None:
        """A client got a ping of the gateway's own in its stream."""
        self._count(families.STREAM_PINGS)

    def count_dropped_log_lines(self) -> None:
        """Count the lines of this process's log that were lost since the last call."""
        if (total := stderr.dropped_lines()) != self._dropped_before:
            with self._lock:
                self._dropped_lines.inc(total - self._dropped_before)
                self._dropped_before = total

    def loop_lag(self, seconds: float) -> None:
        self._observe(families.LOOP_LAG, seconds)

    def request_finished(self, outcome: Outcome) -> None:
        """Count a request that ended.

        The row's sequence number is odd meanwhile, so that readers read again.
        """
        fault, stream = outcome.fault, outcome.stream
        key = (
            outcome.model_label, outcome.backend_label, status_label(outcome.status),
            None if fault is None else fault.error_type, outcome.fallback_from, outcome.usage,
            outcome.prompt_tokens is None, outcome.completion_tokens is None,
            outcome.key_label, outcome.team_label, outcome.affinity,
            outcome.endpoint, outcome.translation is None,
        )  # fmt: skip
        row = self._row
        with self._lock:
            # Resolve the series first: it takes 100 times as long, and readers would wait.
            bundle = self._bundles.get(key)
            if bundle is None:
                bundle = self._bundles[key] = Bundle(self.child, outcome)
            rarer: Sequence[Move] = ()
            if (
                stream is not None
                or outcome.cached_tokens
                or outcome.reasoning_tokens
                or outcome.cache_write_tokens
                or outcome.charge is not None
                or outcome.units is not None
                or outcome.translation is not None
            ):
                rarer = self._rarer(outcome)
            row.write_begin()
            for counter in bundle.counters:
                counter.inc()
            bundle.duration.observe(outcome.duration_s)
            for move in bundle.prompt:
                move(outcome.prompt_tokens)
            for move in bundle.completion:
                move(outcome.completion_tokens)
            if outcome.before_s is not None:
                self._before.observe(outcome.before_s)
            if outcome.after_s is not None:
                self._after.observe(outcome.after_s)
            for move, amount in rarer:
                move(amount)
            row.request_finished()
            if stream is not None:
                row.add_streams(-1)
            row.write_end()

    def ledger_failed(self) -> None:
        """The ledger could not be read or written."""
        self._count(cost_families.LEDGER_ERRORS)

    def caller_refused(self, key: str, team: str, reason: str) -> None:
        """Count a request that was refused for its key; `key` and `team` are label values."""
        self._count(access_families.KEY_REFUSALS, key, team, reason)

    def limit_refused(self, limit: str, dimension: str, *, shadow: bool) -> None:
        """A limit refused a request, or would have (`shadow`)."""
        family = access_families.LIMIT_SHADOW_REFUSALS if shadow else access_families.LIMIT_REFUSALS
        self._count(family, limit, dimension)

    def limit_settled(self, limit: str, tokens: int) -> None:
        """Count the tokens that a request used beyond (or, negative, below) its reservation."""
        family = access_families.LIMIT_OVERRUN if tokens > 0 else access_families.LIMIT_RETURNED
        with self._lock:
            self.child(family, limit).inc(abs(tokens))

    def budget_refused(self, budget: str, reason: str) -> None:
        """A budget refused a request."""
        self._count(cost_families.BUDGET_REFUSALS, budget, reason)

    def budget_overrun(self, budget: str, nano: int) -> None:
        """A request cost so many nano-dollars more than a budget held for it."""
        self._count(cost_families.BUDGET_OVERRUN, budget, by=nano)

    def limits_untracked(self, count: int) -> None:
        """Count limits of an admitted request that are not tracked, because their table is full."""
        if count:
            self._count(access_families.LIMIT_UNTRACKED, by=count)

    def limits_missed(self) -> None:
        """Count a request for which the table of limits was locked."""
        self._count(access_families.LIMIT_LOCK_MISSES)

    def request_log_opened(self) -> None:
        """Create the series of the request log, so that rates of them exist."""
        with self._lock:
            for result in ("written", "lost"):
                self.child(access_families.REQUEST_LOG_LINES, result)

    def request_logged(self, result: str) -> None:
        """Count a line of the request log, by what became of it."""
        self._count(access_families.REQUEST_LOG_LINES, result)

    def retried(self, backend: str, error_type: str, *, sent: bool) -> None:
        """An attempt failed, and another follows. Only one that was sent uses the retry budget."""
        with self._lock:
            self.child(families.RETRIES, backend, error_type).inc()
            if sent:
                self._row.count_retry(time.monotonic_ns())

    def backend_excluded(self, reason: str) -> None:
        """A backend that has the model of a request was not considered for it."""
        self._count(families.EXCLUSIONS, reason)

    def sticky(self, result: str) -> None:
        """A request named what a backend stores."""
        self._count(families.STICKY, result)

    def retry_denied(self, backend: str) -> None:
        self._count(families.RETRIES_DENIED, backend)

    def routing_failed(self, decision_s: float) -> None:
        """Record how long it took to find that no backend can serve."""
        with self._lock:
            self._decision.observe(decision_s)

    def circuit_opened(self, backend: str) -> None:
        self._count(families.CIRCUIT_OPENED, backend)

    def unsolicited_response(self, backend: str) -> None:
        self._count(families.UNSOLICITED, backend)

    def reading_body(self, change: int) -> None:
        """One body more (1) or fewer (-1) is being read."""
        with self._lock:
            self._row.add_bodies(change)

    def spooled(self, change: int) -> None:
        """Bytes of uploads were written to files, or (negative) freed."""
        with self._lock:
            self._row.add_spooled(change)

    def uploaded(self, size: int) -> None:
        """A whole upload of so many bytes came."""
        self._observe(families.UPLOAD_BYTES, size)

    def enqueued(self, column: int) -> None:
        """Count a waiting request, at the backend in `column`, until `dequeued`."""
        with self._lock:
            self._row.add_queued(column, 1)

    def dequeued(self, column: int, waited_s: float) -> None:
        with self._lock:
            self._row.add_queued(column, -1)
            self._queue_wait.observe(waited_s)

    def queue_rejected(self, reason: str) -> None:
        self._count(families.QUEUE_REJECTIONS, reason)

    def unknown_model(self) -> None:
        with self._lock:
            self._unknown_models.inc()

    def rejected(self, reason: str) -> None:
        self._count(families.REJECTED, reason)

    def preflight(self) -> None:
        """Count a preflight of a browser."""
        self._count(families.PREFLIGHTS)

    def probe_answered(self, backend: str, latency_s: float) -> None:
        self._observe(families.PROBE_LATENCY, latency_s, backend)
