"""One reading of all processes' figures, for `/metrics` and `/v1/stats` alike.

Counters and histograms come from the slots' files, the fleet's gauges from the health process's file, and what changes
too fast or belongs to nobody is rendered from the shared tables at the moment of reading.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from itertools import chain

from prometheus_client import CollectorRegistry

from nexus import __version__
from nexus.fleet.circuits import STATES
from nexus.fleet.load_table import HEALTH, SLOTS, WORKER, LoadTable, Row
from nexus.fleet.records import Snapshot
from nexus.fleet.run_directory import Started
from nexus.fleet.slot_lease import SlotLease
from nexus.metrics import families
from nexus.metrics.exposition import FamilySnapshot, Labels, of_family, of_metric
from nexus.metrics.processes import memory_and_cpu
from nexus.metrics.reader import FileReader, Retired

log = logging.getLogger("nexus.metrics")

_ROLES = {WORKER: "worker", HEALTH: "health"}
_PROCESSES_ANEW_S = 1.0
_STRETCH_S = 0.002
_LEAST_FREE_BYTES = 1 << 20


class Pacer:
    """A pause that is one only when it is time: it lets other greenlets run every few milliseconds."""

    def begin(self) -> None:
        """Count from now."""
        self._last = time.perf_counter()

    def __call__(self) -> None:
        if time.perf_counter() - self._last > _STRETCH_S:
            time.sleep(0)
            self._last = time.perf_counter()


class MetricsSnapshot:
    """All families at one moment, in the order of their table."""

    def __init__(self, found: dict[str, FamilySnapshot], pending: dict[str, int]) -> None:
        last = len(families.ORDER)
        self._families = {
            name: found[name]
            for name in sorted(found, key=lambda name: families.ORDER.get(name, last))
        }
        self.pending = pending

    def samples(self, name: str, *, family: str | None = None) -> list[tuple[Labels, float]]:
        """Labels and value of the samples of this name; `family` where it has another name than its samples."""
        found = self._families.get(family or name)
        return found.samples(name) if found else []

    def total(self, family: families.Family, name: str | None = None) -> float:
        """The sum of the samples of a family; `name` if they have another name than the family."""
        return sum(value for _, value in self.samples(name or family.name, family=family.name))

    def exposition(self) -> bytes:
        """Prometheus's text format, version 0.0.4."""
        return "".join([family.exposition() for family in self._families.values()]).encode()


class Collector:
    """Reads the figures of every process of a gateway, from any of its processes.

    Safe from any greenlet or thread; readings that are asked for while one is going on share the next one.
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
        """`registry` holds this process's own figures, read where the seat shares none."""
        self._seat = slot_lease
        self._registry = registry
        self._started = started
        self._snapshot = snapshot
        self._health_process_alive = health_process_alive
        self._pacer = Pacer()
        self._reader = (
            FileReader(slot_lease.metrics, rows=_Rows(slot_lease.table), pause=self._pacer)
            if slot_lease.metrics
            else None
        )
        self._lock = threading.Lock()
        self._begun = 0
        self.waiting = 0
        self._latest: MetricsSnapshot | None = None
        self._processes: tuple[float, list[FamilySnapshot]] = (-_PROCESSES_ANEW_S, [])
        self._was_usable = True

    def collect(self) -> MetricsSnapshot:
        """The figures as they stand at some moment after the call."""
        asked = self._begun
        self.waiting += 1
        with self._lock:
            self.waiting -= 1
            # Whoever else waited for the lock may have read meanwhile: a reading begun after we asked is good for us.
            if self._latest is None or self._begun == asked:
                self._begun += 1
                self._latest = self._collect()
            return self._latest

    def _collect(self) -> MetricsSnapshot:
        began = time.perf_counter()
        self._pacer.begin()
        if self._reader is None:
            stored = [of_metric(metric) for metric in self._registry.collect()]
            in_flight = self._seat.table.in_flight()
            damaged = 0
        else:
            stored = self._reader.read(self._retired()) + [
                of_metric(metric) for metric in self._reader.gauges()
            ]
            in_flight = self._reader.in_flight
            damaged = self._reader.damaged()
        found = {reading.text.name: reading for reading in stored}
        held = self._seat.held_slots()
        pending = self._pending(held)
        for reading in chain(self._rendered(held, pending), self._of_processes(held)):
            found.setdefault(reading.text.name, reading)
        found[families.DAMAGED_FILES.name] = of_family(families.DAMAGED_FILES, [((), damaged)])
        found[families.IMBALANCE.name] = of_family(
            families.IMBALANCE, [((), _imbalance(found, in_flight))]
        )
        took = time.perf_counter() - began
        found[families.SCRAPE_DURATION.name] = of_family(families.SCRAPE_DURATION, [((), took)])
        return MetricsSnapshot(found, pending)

    def _retired(self) -> Retired:
        snapshot = self._snapshot()
        return (
            (snapshot.labels.retired_models, snapshot.labels.retired_backends)
            if snapshot
            else ((), ())
        )

    def _pending(self, held: list[int]) -> dict[str, int]:
        """Backend label → requests queued for it or in flight to it, over the processes that live."""
        snapshot, table = self._snapshot(), self._seat.table
        pending: dict[str, int] = {}
        for backend in snapshot.backends if snapshot else ():
            pending[backend.label] = pending.get(backend.label, 0) + table.pending_in(
                backend.column, held
            )
        return pending

    def _rendered(self, held: list[int], pending: dict[str, int]) -> Iterator[FamilySnapshot]:
        table = self._seat.table
        yield of_family(families.PENDING, [((label,), count) for label, count in pending.items()])
        snapshot, now_ns = self._snapshot(), time.monotonic_ns()
        states: dict[str, int] = {}  # of backends that share a label, the worst
        for backend in (
            snapshot.backends if snapshot and snapshot.config.circuit_breaker.enabled else ()
        ):
            state = STATES.index(self._seat.circuits.state(backend.column, now_ns))
            states[backend.label] = max(state, states.get(backend.label, 0))
        yield of_family(
            families.CIRCUIT_STATE, [((label,), state) for label, state in states.items()]
        )
        yield of_family(families.STREAMS_ACTIVE, [((), table.streams_in(held))])
        yield of_family(families.QUEUE_DEPTH, [((), table.waiting_in(held))])
        # Always there, also before the health process has written its file.
        for family in (families.BACKENDS, families.BACKENDS_HEALTHY, families.MODELS_AVAILABLE):
            yield of_family(family, [((), 0)])
        yield of_family(families.HEALTH_PROCESS_UP, [((), self._health_process_alive())])
        yield of_family(families.BUILD_INFO, [((__version__,), 1)])
        rows = [table.row(slot) for slot in range(table.rows)]
        workers = [rows[slot] for slot in held if rows[slot].role == WORKER]
        draining = sum(row.draining for row in workers)
        yield of_family(families.WORKERS, [((), len(workers) - draining)])
        yield of_family(families.WORKERS_DRAINING, [((), draining)])
        yield of_family(
            families.WORKERS_SILENT, [((), sum(row.is_silent(now_ns) for row in workers))]
        )
        restarts = max(0, table.worker_starts() - self._started.workers)
        yield of_family(families.WORKER_RESTARTS, [((), restarts)])
        yield of_family(families.WORKER_DEATHS, [((), sum(row.worker_deaths for row in rows))])
        yield of_family(families.RUN_DIRECTORY, [((), self._run_directory_usable())])

    def _of_processes(self, held: list[int]) -> list[FamilySnapshot]:
        """Memory and processor time, asked of the kernel once a second at most."""
        now = time.monotonic()
        if now - self._processes[0] >= _PROCESSES_ANEW_S:
            memory, cpu = [], []
            for slot in held:
                row = self._seat.table.row(slot)
                if row.pid and row.in_our_namespace and (found := memory_and_cpu(row.pid)):
                    labels = (str(slot), _ROLES.get(row.role, "unknown"), str(row.pid))
                    memory.append((labels, found[0]))
                    cpu.append((labels, found[1]))
            readings = [
                of_family(families.PROCESS_MEMORY, memory),
                of_family(families.PROCESS_CPU, cpu),
            ]
            self._processes = (now, readings)
        return self._processes[1]

    def _run_directory_usable(self) -> bool:
        """Whether new processes and series still find their place; a change is said in the log."""
        why = "figures are not shared" if self._seat.metrics is None else None
        try:
            if self._seat.metrics is not None:
                space = os.statvfs(self._seat.metrics)
                if space.f_bavail * space.f_frsize < _LEAST_FREE_BYTES:
                    why = "no space is left on its file system"
        except OSError as error:
            why = f"it is gone ({error.strerror})"
        if (why is None) != self._was_usable:
            self._was_usable = why is None
            if why is not None:
                log.error(
                    "the run directory cannot be used",
                    extra={"path": self._seat.metrics, "why": why},
                )
        return why is None


class _Rows:
    """The load table's rows, by the slots' names in file names."""

    def __init__(self, table: LoadTable) -> None:
        self._table = table
        self._rows: dict[str, Row | None] = {}

    def _row(self, slot: str) -> Row | None:
        """None for a file that is not a slot's: somebody else's, which is shown all the same."""
        if slot not in self._rows:
            ours = slot.isdigit() and int(slot) < SLOTS
            self._rows[slot] = self._table.row(int(slot)) if ours else None
        return self._rows[slot]

    def sequence(self, slot: str) -> int:
        row = self._row(slot)
        return row.sequence if row else 0

    def in_flight(self, slot: str) -> int:
        row = self._row(slot)
        return row.in_flight if row else 0


def _imbalance(found: dict[str, FamilySnapshot], in_flight: int) -> float:
    """Started, less finished, in flight and lost. The first two and the last are counters; what is in flight is not."""

    def total(family: families.Family) -> float:
        return sum(found[family.name].values) if family.name in found else 0.0

    return total(families.STARTED) - total(families.REQUESTS) - in_flight - total(families.LOST)
