"""The dashboard's state, made once a second for the whole host from one snapshot of the metrics."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

from msgspec.structs import asdict

from nexus import __version__
from nexus.admin.context import GenerationContext
from nexus.admin.pages import HISTORY_S, TILES, render_parts, render_rows
from nexus.admin.responses import BackendState, PastRequest
from nexus.fleet.dashboard_state import Backlog, Tick, Values
from nexus.fleet.history import RequestRecord
from nexus.fleet.problems import Problem
from nexus.fleet.records import Snapshot
from nexus.fleet.slot_lease import SlotLease
from nexus.fleet.status import fleet_health
from nexus.health.model_matrix import ModelMatrix
from nexus.metrics import families, gateway_families
from nexus.metrics.collector import MetricsSnapshot

_RATES_OVER_S = 5.0
_PERCENTILES_OVER_S = 60.0
_MAX_RECORDS = 5000
_MAX_NEW_ROWS = 30
"""Requests of one second that are shown; a row costs as much as serving a request."""
_MAX_ROWS = 100


class Dashboard:
    """Remembers the last minutes; `sample` makes the state that viewers get."""

    def __init__(self) -> None:
        self._number = 0
        self._seen: dict[int, int] = {}
        self._totals: deque[tuple[float, dict[str, float]]] = deque()
        self._records: deque[RequestRecord] = deque(maxlen=_MAX_RECORDS)
        self._rows: deque[str] = deque(maxlen=_MAX_ROWS)
        self._series: dict[str, deque[float | None]] = {
            key: deque(maxlen=HISTORY_S) for key in ("time", *(tile[0] for tile in TILES))
        }
        self._cpu: dict[str, tuple[float, float]] = {}
        self._matrix = ModelMatrix.of(())
        self._last_faults: dict[str, dict[str, Any]] = {}

    def sample(
        self,
        metrics: MetricsSnapshot,
        snapshot: Snapshot,
        generation: GenerationContext,
        *,
        backends: Sequence[BackendState],
        problems: Sequence[Problem],
        now: float,
        monotonic: float,
    ) -> tuple[Tick, Backlog]:
        """The state at this moment: `now` in Unix seconds for people, `monotonic` for rates."""
        self._number += 1
        new_rows = self._add_records(generation.slot_lease, monotonic)
        latencies, totals = _latencies_by_backend(self._records), _totals(metrics)
        current: Values = {
            **self._rates(totals, monotonic),
            "in_flight": _in_flight(generation.slot_lease),
            "queued": int(metrics.total(families.QUEUE_DEPTH)),
            **_Latencies.merged(latencies.values()).percentiles(),
        }
        for key, values in self._series.items():
            values.append(round(now, 3) if key == "time" else current[key])
        peaks: Values = {
            key: max((value for value in values if value is not None), default=None)
            for key, values in self._series.items()
            if key != "time"
        }
        self._matrix = self._matrix.updated(snapshot)
        uptime_s = generation.uptime_s()
        health = fleet_health(snapshot, uptime_s)
        state = {
            "time": now,
            "version": __version__,
            "uptime_s": uptime_s,
            "status": health.status,
            "healthy": health.backends.healthy,
            "problems": problems,
            "now": current,
            "peaks": peaks,
            "totals": totals,
            "backends": self._backends(metrics, backends, latencies),
            "models": self._matrix.rows,
            "models_hidden": self._matrix.hidden,
            "processes": self._processes(metrics, monotonic),
            "affinity": _affinity(metrics),
            **_process_metrics(metrics),
        }
        tick = Tick(
            number=self._number,
            time=round(now, 3),
            now=current,
            peaks=peaks,
            parts=render_parts(state),
            rows="".join(reversed(new_rows[-_MAX_NEW_ROWS:])),
        )
        backlog = Backlog(
            series={key: list(values) for key, values in self._series.items()},
            rows="".join(reversed(self._rows)),
        )
        return tick, backlog

    def _add_records(self, slot_lease: SlotLease, monotonic: float) -> list[str]:
        """Read the requests that ended since the last sample; returns the newest as HTML."""
        history, slots = slot_lease.history, range(slot_lease.table.rows)
        records = sorted(history.newer_than(self._seen, slots), key=attrgetter("order"))
        self._records.extend(records)
        while self._records and self._records[0].order < monotonic - _PERCENTILES_OVER_S:
            self._records.popleft()
        for record in records:
            for attempt in record.attempts:
                if attempt.outcome not in ("success", "client_gone"):
                    fault = {"outcome": attempt.outcome, "at": record.ended}
                    self._last_faults[attempt.backend] = fault
        limit = _MAX_ROWS if self._number == 1 else _MAX_NEW_ROWS
        rows = [render_rows([PastRequest.of(record)]) for record in records[-limit:]]
        self._rows.extend(rows)
        return rows

    def _backends(
        self,
        metrics: MetricsSnapshot,
        backends: Sequence[BackendState],
        latencies: Mapping[str | None, _Latencies],
    ) -> list[dict[str, Any]]:
        requests = metrics.by("backend", families.REQUESTS)
        cached, prompts = _cached_by_backend(metrics)
        return [
            {
                **asdict(backend),
                "requests": requests[backend.id],
                "cached_share": _share(cached[backend.id], prompts[backend.id]),
                "last_fault": self._last_faults.get(backend.name),
                **latencies.get(backend.name, _Latencies()).percentiles(),
            }
            for backend in backends
        ]

    def _rates(self, totals: dict[str, float], monotonic: float) -> Values:
        """Rates over the last seconds; a new gateway starts from zero."""
        if self._totals and totals["requests"] < self._totals[-1][1]["requests"]:
            self._totals.clear()
        self._totals.append((monotonic, totals))
        while len(self._totals) > 1 and self._totals[1][0] <= monotonic - _RATES_OVER_S:
            self._totals.popleft()
        then, before = self._totals[0]
        elapsed_s = monotonic - then
        if elapsed_s <= 0:
            return {"requests_per_s": 0.0, "error_share": 0.0, "tokens_per_s": 0.0}
        requests = totals["requests"] - before["requests"]
        errors = totals["errors"] - before["errors"]
        return {
            "requests_per_s": round(requests / elapsed_s, 2),
            "error_share": round(100 * errors / requests, 2) if requests else 0.0,
            "tokens_per_s": round((totals["tokens"] - before["tokens"]) / elapsed_s, 1),
        }

    def _processes(self, metrics: MetricsSnapshot, monotonic: float) -> list[dict[str, Any]]:
        memory = metrics.by("pid", gateway_families.PROCESS_MEMORY)
        processes, cpu = [], {}
        for labels, seconds in metrics.samples(gateway_families.PROCESS_CPU):
            pid = labels["pid"]
            then, before = self._cpu.get(pid, (monotonic, seconds))
            share = (seconds - before) / (monotonic - then) if monotonic > then else 0.0
            cpu[pid] = (monotonic, seconds)
            processes.append(
                {
                    "slot": labels["slot"],
                    "role": labels["role"],
                    "pid": pid,
                    "memory_bytes": memory[pid],
                    "cpu_share": max(0.0, share),
                }
            )
        self._cpu = cpu
        return processes


def _in_flight(slot_lease: SlotLease) -> int:
    return sum(slot_lease.table.row(slot).in_flight for slot in slot_lease.held_slots())


def _process_metrics(metrics: MetricsSnapshot) -> dict[str, Any]:
    return {
        "workers": int(metrics.total(gateway_families.WORKERS)),
        "worker_restarts": int(metrics.total(gateway_families.WORKER_RESTARTS)),
        "imbalance": metrics.total(gateway_families.IMBALANCE),
        "scrape_ms": metrics.total(gateway_families.SCRAPE_DURATION) * 1000,
        "fleet_updated": metrics.total(families.FLEET_UPDATED),
        "reload_good": bool(metrics.total(families.RELOAD_SUCCESSFUL)),
        "run_directory_usable": bool(metrics.total(gateway_families.RUN_DIRECTORY)),
    }


def _totals(metrics: MetricsSnapshot) -> dict[str, float]:
    requests = metrics.samples(families.REQUESTS)
    return {
        "requests": sum(value for _, value in requests),
        "errors": sum(value for labels, value in requests if int(labels["status"][0]) >= 4),
        "tokens": metrics.total(families.TOKENS_USED, "_sum"),
        "lost": metrics.total(families.LOST),
    }


@dataclass
class _Latencies:
    """Durations of successful requests and times to their first tokens, in milliseconds."""

    durations: list[float] = field(default_factory=list)
    ttfts: list[float] = field(default_factory=list)

    @classmethod
    def merged(cls, each: Iterable[_Latencies]) -> _Latencies:
        merged = cls()
        for one in each:
            merged.durations += one.durations
            merged.ttfts += one.ttfts
        merged.sort()  # cheap: it consists of sorted runs
        return merged

    def sort(self) -> None:
        self.durations.sort()
        self.ttfts.sort()

    def percentiles(self) -> Values:
        return {
            "duration_p50_ms": _quantile(self.durations, 0.5),
            "duration_p95_ms": _quantile(self.durations, 0.95),
            "ttft_p50_ms": _quantile(self.ttfts, 0.5),
            "ttft_p95_ms": _quantile(self.ttfts, 0.95),
        }


def _latencies_by_backend(records: Iterable[RequestRecord]) -> dict[str | None, _Latencies]:
    """From the records, since the first bucket of the histograms ends at a tenth of a second."""
    by_backend: dict[str | None, _Latencies] = defaultdict(_Latencies)
    for record in records:
        latencies = by_backend[record.backend]
        if record.status < 400:
            latencies.durations.append(record.duration_ms)
        if record.ttft_ms is not None:
            latencies.ttfts.append(record.ttft_ms)
    for latencies in by_backend.values():
        latencies.sort()
    return by_backend


def _quantile(ordered: list[float], share: float) -> float | None:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None


def _affinity(metrics: MetricsSnapshot) -> dict[str, float | None] | None:
    """Shares in percent: hits of requests with a session, and cached of all prompt tokens."""
    results = metrics.by("result", families.AFFINITY)
    if not results:
        return None
    cached, prompts = _cached_by_backend(metrics)
    return {
        "hits": _share(results["hit"], sum(results.values())),
        "cached": _share(sum(cached.values()), sum(prompts.values())),
    }


def _cached_by_backend(metrics: MetricsSnapshot) -> tuple[dict[str, float], dict[str, float]]:
    """Cached prompt tokens, and all of them, by label value."""
    cached: dict[str, float] = defaultdict(float)
    prompts: dict[str, float] = defaultdict(float)
    for labels, value in metrics.samples(families.TOKEN_DETAILS):
        if labels["type"] == "cached":
            cached[labels["backend"]] += value
    for labels, value in metrics.samples(families.TOKENS_USED, "_sum"):
        if labels["type"] == "prompt":
            prompts[labels["backend"]] += value
    return cached, prompts


def _share(part: float, whole: float) -> float | None:
    """In percent; None of nothing."""
    return round(100 * part / whole, 1) if whole else None
