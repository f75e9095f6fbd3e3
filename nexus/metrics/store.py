"""prometheus_client's metrics, kept in the files of one seat.

The library names its files by pid unless told otherwise; here a file is named by slot, and a new lessee continues the
counters that it finds. So there are as many files as processes were alive at once, and no counter ever goes down.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, values
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.values import MultiProcessValue, MutexValue

from nexus.fleet.seat import Seat
from nexus.metrics.families import Family


class Store:
    """Makes counters and histograms of the table of families and hands out their children."""

    def __init__(self, seat: Seat) -> None:
        self.directory = seat.metrics
        self.registry = CollectorRegistry()
        # Neither a pid nor anything with `_` in it: the stock collector splits file names there.
        identifier = str(seat.slot)
        self._value_class: Any = MutexValue if self.directory is None else MultiProcessValue(lambda: identifier)
        self._metrics: dict[str, MetricWrapperBase] = {}
        if self.directory is not None:
            for kind in ("counter", "histogram"):
                # Space reserved now is no SIGBUS later, and no reader ever meets an empty file.
                MmapedDict(str(self.directory / f"{kind}_{identifier}.db")).close()

    def child(self, family: Family, labels: Iterable[str] = ()) -> Any:
        """The counter or histogram of `family` with these label values. It is slow: keep what it returns."""
        # The library takes both from globals at the moment in which a child is made.
        values.ValueClass = self._value_class
        if self.directory is not None:
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(self.directory)
        metric = self._metrics.get(family.name)
        if metric is None:
            if family.kind == "counter":
                metric = Counter(family.name, family.help, family.labels, registry=self.registry)
            else:
                metric = Histogram(
                    family.name, family.help, family.labels, registry=self.registry, buckets=family.buckets
                )
            self._metrics[family.name] = metric
        return metric.labels(*labels) if family.labels else metric

    def close(self) -> None:
        if self.directory is not None:
            self._value_class.close_all_files()
