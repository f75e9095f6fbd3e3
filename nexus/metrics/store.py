"""The counters and histograms of one slot, in prometheus_client's own files.

The library names its files by pid and keeps those of dead processes for ever. Here a file is named
by slot, and a new lessee continues its counters. So there are never more files than processes that
ran at once, and no counter decreases. The format is the library's, and its own collector can read
the files, too. A value increases in shared memory, which costs a tenth of the library's own call.
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
from nexus.metrics import gateway_families
from nexus.metrics.family import NANO, Family
from nexus.metrics.metrics_file import ReservedFile

log = logging.getLogger("nexus.metrics")

_Cell = tuple["memoryview[float]", int]


class SharedCounter:
    """A counter in shared memory, which one process writes; its threads need a lock."""

    __slots__ = ("_at", "_cells")

    def __init__(self, cell: _Cell) -> None:
        self._cells, self._at = cell

    def inc(self, amount: float = 1.0) -> None:
        self._cells[self._at] += amount


class _MoneyInMemory:
    """A counter of dollars that takes nano-dollars, as those in shared memory do."""

    __slots__ = ("_counter",)

    def __init__(self, counter: Any) -> None:
        self._counter = counter

    def inc(self, nano: float) -> None:
        self._counter.inc(nano / NANO)


class SharedHistogram:
    """A histogram in shared memory: its sum and a count for each bucket, not cumulative."""

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
    """Makes counters and histograms in the files of a slot; in memory if it has none."""

    def __init__(self, slot_lease: SlotLease) -> None:
        self.registry = CollectorRegistry()
        self._private: dict[str, MetricWrapperBase] = {}
        self._files: dict[str, ReservedFile] = {}
        if slot_lease.metrics is not None:
            self._files = {
                kind: _open(slot_lease.metrics, kind, slot_lease.slot)
                for kind in ("counter", "histogram")
            }
        self._write_errors = self.child(gateway_families.WRITE_ERRORS)

    def child(self, family: Family, labels: Iterable[str] = ()) -> Any:
        """The counter or histogram of `family` with these label values. Slow: keep the result.

        If the file cannot grow, the result counts in this process only. That is logged and counted.
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
        file, names = self._files[family.kind], list(family.labels)
        if family.kind == "counter":
            return SharedCounter(file.cell(counter_key(family, labels)))
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
        # Now that all exist, a second call returns cells of the same mapping.
        cells = [file.cell(key) for key in keys]
        sum_, *buckets = (at for _, at in cells)
        return SharedHistogram(bounds, cells[0][0], sum_, buckets)

    def _in_memory(self, family: Family, labels: tuple[str, ...]) -> Any:
        metric = self._private.get(family.name)
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
            self._private[family.name] = metric
        child = metric.labels(*labels) if family.labels else metric
        return child if family.stored_name == family.name else _MoneyInMemory(child)

    def close(self) -> None:
        for file in self._files.values():
            file.close()


def counter_key(family: Family, labels: Sequence[str]) -> str:
    """The key of a counter in its file."""
    name = family.stored_name
    metric = name.removesuffix("_total")
    return mmap_key(metric, name, list(family.labels), list(labels), family.help)


def _open(directory: Path, kind: str, slot: int) -> ReservedFile:
    # The slot takes the place of the library's pid. It has no `_`, at which the collector splits.
    return ReservedFile(str(directory / f"{kind}_{slot}.db"))
