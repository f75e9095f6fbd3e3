"""The counters and histograms of one seat, in prometheus_client's own files.

The library names its files by pid and keeps those of dead processes for ever; here a file is named
by slot, and a new lessee continues the counters that it finds. So there are as many files as
processes were alive at once, and no counter ever goes down. The format is the library's, and its
own collector reads the files too; but a value is counted up where it lies in shared memory, which
costs a tenth of the library's own call.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.mmap_dict import mmap_key
from prometheus_client.utils import floatToGoString

from nexus.fleet.slot_lease import SlotLease
from nexus.metrics import families
from nexus.metrics.family import Family
from nexus.metrics.metrics_file import ReservedFile

log = logging.getLogger("nexus.metrics")

_Place = tuple["memoryview[float]", int]


class SharedCounter:
    """A counter in shared memory. One process writes it, under a lock where that has threads."""

    __slots__ = ("_at", "_cells")

    def __init__(self, place: _Place) -> None:
        self._cells, self._at = place

    def inc(self, amount: float = 1.0) -> None:
        self._cells[self._at] += amount


class SharedHistogram:
    """A histogram in shared memory: its sum, and a count for each bucket alone, as the library
    stores it."""

    __slots__ = ("_bounds", "_buckets", "_cells", "_sum")

    def __init__(
        self, bounds: Sequence[float], cells: memoryview[float], sum_: int, buckets: Sequence[int]
    ) -> None:
        self._bounds = bounds
        self._cells = cells
        self._sum = sum_
        self._buckets = buckets

    def observe(self, amount: float) -> None:
        cells = self._cells
        cells[self._sum] += amount
        cells[self._buckets[bisect_left(self._bounds, amount)]] += 1.0


class Store:
    """Makes the counters and histograms of the table in the files of a seat; in memory where it
    has none."""

    def __init__(self, slot_lease: SlotLease) -> None:
        self.registry = CollectorRegistry()
        self._alone: dict[str, MetricWrapperBase] = {}
        self._files: dict[str, ReservedFile] = {}
        if slot_lease.metrics is not None:
            self._files = {
                kind: _open(slot_lease.metrics, kind, slot_lease.slot)
                for kind in ("counter", "histogram")
            }
        self._write_errors = self.child(families.WRITE_ERRORS)

    def child(self, family: Family, labels: Iterable[str] = ()) -> Any:
        """The counter or histogram of `family` with these label values. It is slow: keep what it
        returns.

        Where the file cannot grow, the child counts in this process alone, and that is logged and
        counted.
        """
        labels = tuple(labels)
        if not self._files:
            return self._in_memory(family, labels)
        try:
            return self._shared(family, labels)
        except OSError as error:
            log.error(
                "series is not shared",
                extra={"family": family.name, "labels": ",".join(labels), "why": error},
            )
            self._write_errors.inc()
            return self._in_memory(family, labels)

    def _shared(self, family: Family, labels: tuple[str, ...]) -> SharedCounter | SharedHistogram:
        file, names, metric = (
            self._files[family.kind],
            list(family.labels),
            family.name.removesuffix("_total"),
        )
        if family.kind == "counter":
            return SharedCounter(
                file.cell(mmap_key(metric, family.name, names, list(labels), family.help))
            )
        # A histogram keeps its whole name; the library strips a suffix from counters only.
        bounds = tuple(map(float, family.buckets))
        keys = [mmap_key(family.name, f"{family.name}_sum", names, list(labels), family.help)]
        keys += [
            mmap_key(
                family.name,
                f"{family.name}_bucket",
                [*names, "le"],
                [*labels, floatToGoString(bound)],
                family.help,
            )
            for bound in (*bounds, float("inf"))
        ]
        for key in keys:
            file.cell(key)
        places = [
            file.cell(key) for key in keys
        ]  # once more: now that all are made, they lie in one mapping
        sum_, *buckets = (at for _, at in places)
        return SharedHistogram(bounds, places[0][0], sum_, buckets)

    def _in_memory(self, family: Family, labels: tuple[str, ...]) -> Any:
        metric = self._alone.get(family.name)
        if metric is None:
            if family.kind == "counter":
                metric = Counter(family.name, family.help, family.labels, registry=self.registry)
            else:
                metric = Histogram(
                    family.name,
                    family.help,
                    family.labels,
                    registry=self.registry,
                    buckets=family.buckets,
                )
            self._alone[family.name] = metric
        return metric.labels(*labels) if family.labels else metric

    def close(self) -> None:
        for file in self._files.values():
            file.close()


def _open(directory: Path, kind: str, slot: int) -> ReservedFile:
    # The slot stands where the library writes a pid; it must hold no `_`, since the collector
    # splits names there.
    return ReservedFile(str(directory / f"{kind}_{slot}.db"))
