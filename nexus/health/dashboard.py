"""The dashboard's state, made once a second for the whole host from one reading of the figures."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import msgspec

from nexus import __version__
from nexus.admin.history import entry
from nexus.admin.pages import KEPT_S, TILES, parts, rows
from nexus.fleet.records import Model, Snapshot
from nexus.fleet.request_log import RequestRecord
from nexus.fleet.slot_lease import SlotLease
from nexus.fleet.status import fleet_health
from nexus.fleet.windows import RecentOutcomes
from nexus.health.backend_status import backend_states
from nexus.metrics import families
from nexus.metrics.collector import MetricsSnapshot

_RATE_OVER_S = 5.0
_PERCENTILES_OVER_S = 60.0
_MOST_TIMES = 5000
_MOST_ROWS = 30
"""Requests of one second that are shown; nobody could read more, and a row costs as much as serving a request."""
_SHOWN = 100
_LEAST_MODELS, _MOST_MODELS, _MOST_CELLS = 5, 100, 1000
"""Models that are shown, fewer for many backends; a page of thousands would be rendered and sent each second."""


class Dashboard:
    """Remembers the last minutes; `sample` gives the two lines of the state (see `fleet/live.py`)."""

    def __init__(self) -> None:
        self._number = 0
        self._seen: dict[int, int] = {}
        self._totals: deque[tuple[float, dict[str, float]]] = deque()
        self._times: deque[RequestRecord] = deque(maxlen=_MOST_TIMES)
        self._rows: deque[str] = deque(maxlen=_SHOWN)
        self._series: dict[str, deque[float | None]] = {
            key: deque(maxlen=KEPT_S) for key in ("time", *(tile[0] for tile in TILES))
        }
        self._cpu: dict[str, tuple[float, float]] = {}
        self._lately: Mapping[str, RecentOutcomes] = {}
        self._matrix = Matrix.of(())
        self._last_faults: dict[str, dict[str, Any]] = {}

    def sample(
        self,
        reading: MetricsSnapshot,
        snapshot: Snapshot,
        slot_lease: SlotLease,
        *,
        uptime_s: float,
        now: float,
        at: float,
        lately: Mapping[str, RecentOutcomes],
    ) -> tuple[bytes, bytes]:
        """`now` in Unix seconds, for people; `at` on the monotonic clock, for what is measured.

        `lately`: how each backend did in the last hour and day, by its label value.
        """
        self._lately = lately
        self._number += 1
        fresh = sorted(
            slot_lease.request_log.newer_than(self._seen, range(slot_lease.table.rows)),
            key=attrgetter("order"),
        )
        self._times.extend(fresh)
        most = _SHOWN if self._number == 1 else _MOST_ROWS
        new_rows = [rows([entry(record)]) for record in fresh[-most:]]
        self._rows.extend(new_rows)
        while self._times and self._times[0].order < at - _PERCENTILES_OVER_S:
            self._times.popleft()
        for record in fresh:
            for one in record.attempts:
                if one.outcome not in ("success", "client_gone"):
                    self._last_faults[one.backend] = {"outcome": one.outcome, "at": record.ended}
        totals, times = _totals(reading), _by_backend(self._times)
        current = {
            **self._rates(totals, at),
            **self._gauges(reading, slot_lease),
            **_Times.of_all(times.values()).percentiles(),
        }
        for key, values in self._series.items():
            values.append(round(now, 3) if key == "time" else current[key])
        peaks = {
            key: max((value for value in values if value is not None), default=None)
            for key, values in self._series.items()
            if key != "time"
        }
        state = self._state(
            reading, snapshot, slot_lease, totals, times, uptime_s=uptime_s, now=now, at=at
        )
        state |= {"now": current, "peaks": peaks}
        tick = {
            "number": self._number,
            "time": round(now, 3),
            "now": current,
            "peaks": peaks,
            "parts": parts(state),
            "rows": "".join(reversed(new_rows[-_MOST_ROWS:])),
        }
        history = {
            "series": {key: list(values) for key, values in self._series.items()},
            "rows": "".join(reversed(self._rows)),
        }
        return msgspec.json.encode(tick), msgspec.json.encode(history)

    def _state(
        self,
        reading: MetricsSnapshot,
        snapshot: Snapshot,
        slot_lease: SlotLease,
        totals: dict[str, float],
        times: dict[str | None, _Times],
        *,
        uptime_s: float,
        now: float,
        at: float,
    ) -> dict[str, Any]:
        health = fleet_health(snapshot, uptime_s)
        shown = self._matrix = self._matrix.renewed(snapshot)
        served: dict[str, float] = {}
        for labels, value in reading.samples(families.REQUESTS.name):
            served[labels["backend"]] = served.get(labels["backend"], 0) + value
        backends = [
            {
                **backend,
                "requests": served.get(backend["id"], 0),
                "last_fault": self._last_faults.get(backend["name"]),
                "trouble": lately.trouble if (lately := self._lately.get(backend["id"])) else None,
                **times.get(backend["name"], _Times()).percentiles(),
            }
            for backend in backend_states(snapshot, slot_lease)
        ]
        return {
            "time": now,
            "version": __version__,
            "uptime_s": uptime_s,
            "status": health["status"],
            "healthy": health["backends"]["healthy"],
            "totals": totals,
            "backends": backends,
            "models": shown.rows,
            "models_not_shown": shown.not_shown,
            "processes": self._processes(reading, at),
            "workers": int(_sum(reading, families.WORKERS)),
            "worker_restarts": int(_sum(reading, families.WORKER_RESTARTS)),
            "figures": {
                "imbalance": _sum(reading, families.IMBALANCE),
                "scrape_ms": _sum(reading, families.SCRAPE_DURATION) * 1000,
                "fleet_updated": _sum(reading, families.FLEET_UPDATED),
                "reload_good": bool(_sum(reading, families.RELOAD_SUCCESSFUL)),
                "run_directory_usable": bool(_sum(reading, families.RUN_DIRECTORY)),
            },
        }

    def _rates(self, totals: dict[str, float], at: float) -> dict[str, float | None]:
        """Over the last seconds; from zero again where the gateway was started anew."""
        if self._totals and totals["requests"] < self._totals[-1][1]["requests"]:
            self._totals.clear()
        self._totals.append((at, totals))
        while len(self._totals) > 1 and self._totals[1][0] <= at - _RATE_OVER_S:
            self._totals.popleft()
        then, before = self._totals[0]
        elapsed_s = at - then
        if elapsed_s <= 0:
            return {"requests_per_s": 0.0, "error_share": 0.0, "tokens_per_s": 0.0}
        requests = totals["requests"] - before["requests"]
        errors = totals["errors"] - before["errors"]
        return {
            "requests_per_s": round(requests / elapsed_s, 2),
            "error_share": round(100 * errors / requests, 2) if requests else 0.0,
            "tokens_per_s": round((totals["tokens"] - before["tokens"]) / elapsed_s, 1),
        }

    @staticmethod
    def _gauges(reading: MetricsSnapshot, slot_lease: SlotLease) -> dict[str, float | None]:
        in_flight = sum(slot_lease.table.row(slot).in_flight for slot in slot_lease.held_slots())
        return {"in_flight": in_flight, "queued": int(_sum(reading, families.QUEUE_DEPTH))}

    def _processes(self, reading: MetricsSnapshot, at: float) -> list[dict[str, Any]]:
        memory = {
            labels["pid"]: value for labels, value in reading.samples(families.PROCESS_MEMORY.name)
        }
        found, cpu = [], {}
        for labels, seconds in reading.samples(families.PROCESS_CPU.name):
            pid = labels["pid"]
            then, before = self._cpu.get(pid, (at, seconds))
            share = (seconds - before) / (at - then) if at > then else 0.0
            cpu[pid] = (at, seconds)
            found.append(
                {
                    "slot": labels["slot"], "role": labels["role"], "pid": pid, "memory_bytes": memory.get(pid, 0),
                    "cpu_share": max(0.0, share),
                }
            )  # fmt: skip
        self._cpu = cpu
        return found


def _totals(reading: MetricsSnapshot) -> dict[str, float]:
    requests = reading.samples(families.REQUESTS.name)
    return {
        "requests": sum(value for _, value in requests),
        "errors": sum(value for labels, value in requests if int(labels["status"][0]) >= 4),
        "tokens": _sum(reading, families.TOKENS_USED, f"{families.TOKENS_USED.name}_sum"),
        "lost": _sum(reading, families.LOST),
    }


def _sum(reading: MetricsSnapshot, family: families.Family, name: str | None = None) -> float:
    return sum(value for _, value in reading.samples(name or family.name, family=family.name))


class _Times:
    """How long requests took, and their first tokens, in milliseconds."""

    def __init__(self) -> None:
        self.durations: list[float] = []
        self.firsts: list[float] = []

    @classmethod
    def of_all(cls, each: Iterable[_Times]) -> _Times:
        found = cls()
        for one in each:
            found.durations += one.durations
            found.firsts += one.firsts
        found.sort()  # of runs that are in order, which costs little
        return found

    def sort(self) -> None:
        self.durations.sort()
        self.firsts.sort()

    def percentiles(self) -> dict[str, float | None]:
        return {
            "duration_p50_ms": _quantile(self.durations, 0.5),
            "duration_p95_ms": _quantile(self.durations, 0.95),
            "ttft_p50_ms": _quantile(self.firsts, 0.5),
            "ttft_p95_ms": _quantile(self.firsts, 0.95),
        }


def _by_backend(records: Iterable[RequestRecord]) -> dict[str | None, _Times]:
    """The last minute's requests by their own times: the histograms' buckets begin at a tenth of a second."""
    found: dict[str | None, _Times] = {}
    for record in records:
        times = found.get(record.backend)
        if times is None:
            times = found[record.backend] = _Times()
        if record.status < 400:
            times.durations.append(record.duration_ms)
        if record.ttft_ms is not None:
            times.firsts.append(record.ttft_ms)
    for times in found.values():
        times.sort()
    return found


def _quantile(ordered: list[float], share: float) -> float | None:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None


@dataclass(frozen=True)
class Matrix:
    """The first models by name, each with the backends that offer it and what it can do there.

    `lists`: what it was made from, the models of each backend by name.
    """

    lists: tuple[tuple[str, tuple[Model, ...]], ...]
    rows: list[dict[str, Any]]
    not_shown: int

    def renewed(self, snapshot: Snapshot) -> Matrix:
        """This one if no backend's models have changed, else a new one."""
        lists = tuple((backend.name, backend.models) for backend in snapshot.backends)
        same = len(lists) == len(self.lists) and all(
            name == before and models is known
            for (name, models), (before, known) in zip(lists, self.lists, strict=True)
        )
        return self if same else Matrix.of(lists)

    @classmethod
    def of(cls, lists: tuple[tuple[str, tuple[Model, ...]], ...]) -> Matrix:
        names = {model.name for _, models in lists for model in models}
        most = max(_LEAST_MODELS, min(_MOST_MODELS, _MOST_CELLS // max(1, len(lists))))
        shown = heapq.nsmallest(most, names)
        offers: dict[str, dict[str, Any]] = {name: {} for name in shown}
        for backend, models in lists:
            for model in models:
                if model.name in offers:
                    offers[model.name][backend] = _offer(model)
        rows = [{"name": name, "offers": offers[name]} for name in shown]
        return cls(lists, rows, len(names) - len(rows))


def _offer(model: Model) -> dict[str, Any]:
    can = [word for word, on in (("vision", model.vision), ("tools", model.tools)) if on]
    if model.json_mode is False:
        can.append("no JSON mode")  # nearly all can
    return {"can": [*can, *model.tasks], "context": model.context_length}
