"""Collects the metrics of all processes of a gateway, for `/metrics` and `/v1/stats` alike.

Counters and histograms come from the slots' files, the fleet's gauges from the health process's
file. What changes too fast, or belongs to no process, is rendered from the shared tables.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path

from prometheus_client import CollectorRegistry

from nexus import __version__
from nexus.access.budgets import MAX_SUBJECTS, Budgets, BudgetState
from nexus.fleet.circuits import STATES
from nexus.fleet.limit_table import LimitTable
from nexus.fleet.load_table import HEALTH, SLOTS, WORKER, Row
from nexus.fleet.records import Snapshot
from nexus.fleet.run_directory import Started
from nexus.fleet.slot_lease import SlotLease
from nexus.fleet.sticky_table import ENTRIES, StickyTable
from nexus.metrics import access_families, cost_families, families, gateway_families
from nexus.metrics.directory_reader import DirectoryReader, Retired
from nexus.metrics.exposition import FamilySnapshot, Labels, of_family, of_metric
from nexus.metrics.family import NANO, Family
from nexus.metrics.limit_gauge import LimitGauge
from nexus.metrics.processes import memory_and_cpu
from nexus.metrics.usage import UsageReader

log = logging.getLogger("nexus.metrics")

_ROLES = {WORKER: "worker", HEALTH: "health"}
_MAX_STRETCH_S = 0.002
_MIN_FREE_BYTES = 1 << 20
_ORDER = {family.name: number for number, family in enumerate(families.FAMILIES)}


class Pacer:
    """Lets other greenlets run every few milliseconds, however often it is called."""

    def __init__(self) -> None:
        self._last = 0.0

    def start(self) -> None:
        """Count from now."""
        self._last = time.perf_counter()

    def __call__(self) -> None:
        if time.perf_counter() - self._last > _MAX_STRETCH_S:
            time.sleep(0)
            self._last = time.perf_counter()


class MetricsSnapshot:
    """All families at one moment, in the order of their table.

    Attributes:
        pending: By backend label, the requests queued for it or in flight to it.
    """

    def __init__(self, snapshots: dict[str, FamilySnapshot], pending: dict[str, int]) -> None:
        names = sorted(snapshots, key=lambda name: _ORDER.get(name, len(_ORDER)))
        self._families = {name: snapshots[name] for name in names}
        self.pending = pending

    def samples(self, family: Family, part: str = "") -> list[tuple[Labels, float]]:
        """Labels and value of a family's samples; of a histogram, `part` is `_sum` or `_count`."""
        snapshot = self._families.get(family.name)
        return snapshot.samples(family.name + part) if snapshot else []

    def total(self, family: Family, part: str = "") -> float:
        """The sum of these samples."""
        return sum(value for _, value in self.samples(family, part))

    def by(self, label: str, family: Family, part: str = "") -> dict[str, float]:
        """Their sum for each value of a label; 0 for other values."""
        sums: dict[str, float] = defaultdict(float)
        for labels, value in self.samples(family, part):
            sums[labels[label]] += value
        return sums

    def exposition(self) -> bytes:
        """Prometheus's text format, version 0.0.4."""
        return "".join([family.exposition() for family in self._families.values()]).encode()


class Collector:
    """Collects from any process of the gateway. Safe from any greenlet or thread.

    Callers that wait while a collection runs share the next one.

    Attributes:
        waiting: How many callers wait for a collection that runs.
    """

    def __init__(
        self,
        slot_lease: SlotLease,
        registry: CollectorRegistry,
        *,
        started: Started,
        snapshot: Callable[[], Snapshot | None],
        health_process_alive: Callable[[], bool],
    ) -> None:
        """`registry` holds this process's own metrics, for a lease that shares none."""
        self._lease = slot_lease
        self._registry = registry
        self._started = started
        self._snapshot = snapshot
        self._health_process_alive = health_process_alive
        self._pacer = Pacer()
        self._reader = (
            DirectoryReader(slot_lease.metrics, row=self._row, pause=self._pacer)
            if slot_lease.metrics
            else None
        )
        self._sticky = _sticky_table(slot_lease)
        self._limit_gauge = LimitGauge(slot_lease)
        self._lock = threading.Lock()
        self._collections = 0
        self.waiting = 0
        self._latest: MetricsSnapshot | None = None
        self._was_usable = True
        self._limit_table: LimitTable | None = None

    def collect(self) -> MetricsSnapshot:
        """The metrics as they are at some moment after the call."""
        before = self._collections
        self.waiting += 1
        with self._lock:
            self.waiting -= 1
            # A collection that another caller started after this call is as good as a new one.
            if self._latest is None or self._collections == before:
                self._collections += 1
                self._latest = self._collect()
            return self._latest

    def _collect(self) -> MetricsSnapshot:
        started = time.perf_counter()
        self._pacer.start()
        if self._reader is None:
            stored = [of_metric(metric) for metric in self._registry.collect()]
            in_flight, damaged = self._lease.table.in_flight(), 0
        else:
            stored = self._reader.read(self._retired())
            stored += [of_metric(metric) for metric in self._reader.gauges()]
            in_flight, damaged = self._reader.in_flight, self._reader.damaged()
        snapshots = {family.layout.name: family for family in stored}
        held = self._lease.held_slots()
        pending = self._pending(held)
        for family in chain(self._from_tables(held, pending), self._of_processes(held)):
            snapshots.setdefault(family.layout.name, family)

        def add(family: Family, value: float) -> None:
            snapshots[family.name] = of_family(family, [((), value)])

        add(gateway_families.DAMAGED_FILES, damaged)
        add(gateway_families.IMBALANCE, _imbalance(snapshots, in_flight))
        if cost_families.COST.name in snapshots:
            add(cost_families.IMBALANCE, _cost_imbalance(snapshots))
        add(gateway_families.SCRAPE_DURATION, time.perf_counter() - started)
        return MetricsSnapshot(snapshots, pending)

    def close(self) -> None:
        """Close the files that it keeps open; nothing may be collected afterwards."""
        if self._reader is not None:
            self._reader.close()
        if self._limit_table is not None:
            self._limit_table.close()
        self._limit_gauge.close()

    def usage_reader(self, directory: Path) -> UsageReader:
        """A reader of what all processes have used since the gateway started."""
        return UsageReader(directory, self._row, self._pacer)

    def _row(self, slot: str) -> Row | None:
        """The row of the slot that stands in a file's name; None if the file is somebody else's."""
        ours = slot.isdigit() and int(slot) < SLOTS
        return self._lease.table.row(int(slot)) if ours else None

    def _retired(self) -> Retired:
        snapshot = self._snapshot()
        if snapshot is None:
            return (), ()
        return snapshot.labels.retired_models, snapshot.labels.retired_backends

    def _pending(self, held: list[int]) -> dict[str, int]:
        """Backend label → requests queued for it or in flight to it, over these slots."""
        snapshot, pending = self._snapshot(), dict[str, int]()
        for backend in snapshot.backends if snapshot else ():
            count = self._lease.table.pending_in(backend.column, held)
            pending[backend.label] = pending.get(backend.label, 0) + count
        return pending

    def _circuit_states(self, now_ns: int) -> dict[str, int]:
        """Backend label → state of its circuit; the worst one if several share the label."""
        snapshot, states = self._snapshot(), dict[str, int]()
        if snapshot is not None and snapshot.config.circuit_breaker.enabled:
            for backend in snapshot.backends:
                state = STATES.index(self._lease.circuits.state(backend.column, now_ns))
                states[backend.label] = max(state, states.get(backend.label, 0))
        return states

    def limit_levels(self) -> list[tuple[tuple[str, str, str], float]]:
        """Limit, subject and dimension of the levels that are lowest, and the share left."""
        return self._limit_gauge.samples(self._snapshot(), time.monotonic_ns())

    def _from_tables(self, held: list[int], pending: dict[str, int]) -> Iterator[FamilySnapshot]:
        table, now_ns = self._lease.table, time.monotonic_ns()
        rows = [table.row(slot) for slot in range(table.rows)]
        workers = [rows[slot] for slot in held if rows[slot].role == WORKER]
        draining = sum(row.draining for row in workers)
        used = self._sticky.used(now_ns // 1_000_000_000)
        by_label: dict[Family, dict[str, int]] = {
            families.STICKY_IDS: {"used": used, "free": ENTRIES - used},
            families.PENDING: pending,
            families.CIRCUIT_STATE: self._circuit_states(now_ns),
            gateway_families.BUILD_INFO: {__version__: 1},
        }
        for family, values in by_label.items():
            yield of_family(family, [((label,), value) for label, value in values.items()])
        yield of_family(access_families.LIMIT_LEVEL, self.limit_levels())
        single: dict[Family, float] = {
            families.STREAMS_ACTIVE: table.streams_in(held),
            families.SPOOLED_BYTES: table.spooled_in(held),
            families.QUEUE_DEPTH: table.waiting_in(held),
            # Always there, also before the health process has written its file.
            families.BACKENDS: 0,
            families.BACKENDS_HEALTHY: 0,
            families.MODELS_AVAILABLE: 0,
            gateway_families.HEALTH_PROCESS_UP: self._health_process_alive(),
            gateway_families.WORKERS: len(workers) - draining,
            gateway_families.WORKERS_DRAINING: draining,
            gateway_families.WORKERS_SILENT: sum(row.is_silent(now_ns) for row in workers),
            gateway_families.WORKER_RESTARTS: max(0, table.worker_starts() - self._started.workers),
            gateway_families.WORKER_DEATHS: sum(row.worker_deaths for row in rows),
            gateway_families.RUN_DIRECTORY: self._run_directory_usable(),
        }
        snapshot = self._snapshot()
        if snapshot is not None and (version := snapshot.config.costs.version) is not None:
            since = datetime(version.year, version.month, version.day, tzinfo=UTC)
            single[cost_families.PRICES_AGE] = max(0.0, time.time() - since.timestamp())
        yield from self._budgets()
        for family, value in single.items():
            yield of_family(family, [((), value)])

    def budget_states(self) -> list[BudgetState]:
        """How the budgets stand: those for all, then subjects by the share that they have spent."""
        snapshot = self._snapshot()
        budgets = Budgets.of(snapshot.config, snapshot.grants) if snapshot is not None else None
        if budgets is None:
            return []
        try:
            table = self._limit_table = self._limit_table or self._lease.open_limit_table()
        except OSError as error:
            log.error("the accounts of budgets cannot be read", extra={"why": error})
            return []
        states = budgets.states(table.accounts.entries(), time.time())
        return sorted(
            states,
            key=lambda one: (one.account.subject != "", -one.spent / (one.account.limit or 1)),
        )

    def _budgets(self) -> Iterator[FamilySnapshot]:
        states = self.budget_states()[:MAX_SUBJECTS]
        if not states:
            return
        values: dict[Family, list[float | None]] = {
            cost_families.BUDGET_LIMIT: [state.account.limit / NANO for state in states],
            cost_families.BUDGET_WARN: [state.account.warns_at / NANO for state in states],
            cost_families.BUDGET_SPENT: [state.spent / NANO for state in states],
            cost_families.BUDGET_HELD: [state.held / NANO for state in states],
            cost_families.BUDGET_RESETS: [
                state.account.end if state.account.resets else None for state in states
            ],
        }
        names = [(state.account.budget.name, state.account.subject) for state in states]
        for family, numbers in values.items():
            samples = zip(names, numbers, strict=True)
            yield of_family(family, [(key, one) for key, one in samples if one is not None])

    def _of_processes(self, held: list[int]) -> Iterator[FamilySnapshot]:
        """Memory and CPU time of each process, read from the kernel now: a counter that is older
        than another process has shown it would fall."""
        memory, cpu = [], []
        for slot in held:
            row = self._lease.table.row(slot)
            if row.pid and row.in_our_namespace and (usage := memory_and_cpu(row.pid)):
                labels = (str(slot), _ROLES.get(row.role, "unknown"), str(row.pid))
                memory.append((labels, usage[0]))
                cpu.append((labels, usage[1]))
            self._pacer()
        yield of_family(gateway_families.PROCESS_MEMORY, memory)
        yield of_family(gateway_families.PROCESS_CPU, cpu)

    def _run_directory_usable(self) -> bool:
        """Whether new processes and series can use the directory; a change is logged."""
        why, path = None, self._lease.metrics
        try:
            if path is None:
                why = "metrics are not shared"
            elif (space := os.statvfs(path)).f_bavail * space.f_frsize < _MIN_FREE_BYTES:
                why = "no space is left on its file system"
        except OSError as error:
            why = f"it is gone ({error.strerror})"
        if (why is None) != self._was_usable:
            self._was_usable = why is None
            if why is not None:
                log.error("the run directory cannot be used", extra={"path": path, "why": why})
        return why is None


def _sticky_table(slot_lease: SlotLease) -> StickyTable:
    """The table of stored responses; an empty one if it cannot be opened, as workers do."""
    try:
        return StickyTable(slot_lease.generation.sticky if slot_lease.generation else None)
    except OSError:
        return StickyTable(None)


def _cost_imbalance(snapshots: dict[str, FamilySnapshot]) -> float:
    """Costs by backend, less those by key, in dollars; both are whole nano-dollars."""
    costs, by_key = snapshots[cost_families.COST.name], snapshots.get(cost_families.KEY_COST.name)
    delivered = sum(
        round(value * NANO)
        for labels, value in zip(costs.layout.labels, costs.values, strict=True)
        if labels["outcome"] == "delivered"
    )
    charged = sum(round(value * NANO) for value in by_key.values) if by_key is not None else 0
    return (delivered - charged) / NANO


def _imbalance(snapshots: dict[str, FamilySnapshot], in_flight: int) -> float:
    """Started less finished, in flight and lost.

    All but `in_flight` are counters; `in_flight` is counted apart, in the load table.
    """

    def total(family: Family) -> float:
        return sum(snapshots[family.name].values) if family.name in snapshots else 0.0

    return total(families.STARTED) - total(families.REQUESTS) - in_flight - total(families.LOST)
