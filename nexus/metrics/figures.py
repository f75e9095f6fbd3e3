"""One reading of all processes' figures, for `/metrics` and `/v1/stats` alike.

Counters and histograms come from the slots' files, the fleet's gauges from the health process's file, and what changes
too fast or belongs to nobody is rendered from the shared tables at the moment of reading.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from nexus import __version__
from nexus.fleet.records import Snapshot
from nexus.fleet.seat import Seat
from nexus.metrics import families

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
log = logging.getLogger("nexus.metrics")


class Figures:
    """Reads the figures of every process of a gateway. Safe from any process; costs one pass over the files."""

    def __init__(
        self,
        seat: Seat,
        registry: CollectorRegistry,
        *,
        snapshot: Callable[[], Snapshot | None],
        health_process_alive: Callable[[], bool],
    ) -> None:
        """`registry` holds this process's own figures, read where the seat shares none."""
        self._seat = seat
        self._registry = registry
        self._snapshot = snapshot
        self._health_process_alive = health_process_alive

    def read(self) -> list[Metric]:
        """All families that have samples, in the order of their table."""
        stored = self._registry.collect() if self._seat.metrics is None else read_files(self._seat.metrics)
        found = {_full_name(metric): metric for metric in stored}
        for metric in self._rendered():
            found.setdefault(_full_name(metric), metric)
        return [found[name] for name in sorted(found, key=lambda name: families.ORDER.get(name, len(families.ORDER)))]

    def exposition(self) -> bytes:
        """The figures in Prometheus's text format, version 0.0.4."""
        return generate_latest(_Once(self.read()))

    def pending(self) -> dict[str, int]:
        """Backend label → requests queued for it or in flight to it, over the processes that live."""
        snapshot = self._snapshot()
        held = self._seat.held_slots()
        table = self._seat.table
        return {b.label: table.pending_in(b.column, held) for b in snapshot.backends} if snapshot else {}

    def _rendered(self) -> Iterator[Metric]:
        pending = _metric(families.PENDING)
        for backend, count in self.pending().items():
            pending.add_sample(families.PENDING.name, {"backend": backend}, count)
        yield pending
        # Always there, also before the health process has written its file.
        for family in (families.BACKENDS, families.BACKENDS_HEALTHY, families.MODELS_AVAILABLE):
            yield _gauge(family, 0)
        yield _gauge(families.HEALTH_PROCESS_UP, int(self._health_process_alive()))
        yield _gauge(families.BUILD_INFO, 1, version=__version__)


class _Once(Collector):
    """Lets a list of metrics be rendered like a registry."""

    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def read_files(directory: Path) -> Iterable[Metric]:
    """Merge prometheus_client's files; one that is empty or damaged is left out and said so, never a failed scrape."""
    sound = []
    for file in sorted(directory.glob("*.db")):
        try:
            for _ in MmapedDict.read_all_values_from_file(str(file)):
                pass
        except Exception:
            log.exception("metrics file left out", extra={"file": file.name})
            continue
        sound.append(str(file))
    merged: Iterable[Metric] = MultiProcessCollector.merge(sound)
    return merged


def _full_name(metric: Metric) -> str:
    return f"{metric.name}_total" if metric.type == "counter" else metric.name


def _metric(family: families.Family) -> Metric:
    return Metric(family.name, family.help, family.kind)


def _gauge(family: families.Family, value: float, **labels: str) -> Metric:
    metric = _metric(family)
    metric.add_sample(family.name, labels, value)
    return metric
