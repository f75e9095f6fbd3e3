"""prometheus_client's metrics, kept in the files of one seat.

The library names its files by pid unless told otherwise; here a file is named by slot, and a new lessee continues the
counters that it finds. So there are as many files as processes were alive at once, and no counter ever goes down.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, values
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.values import MultiProcessValue, MutexValue

from nexus.fleet.seat import Seat
from nexus.metrics import families
from nexus.metrics.families import Family
from nexus.metrics.files import ReservedFile

log = logging.getLogger("nexus.metrics")


class Store:
    """Makes counters and histograms of the table of families and hands out their children."""

    def __init__(self, seat: Seat) -> None:
        self.directory = seat.metrics
        self.registry = CollectorRegistry()
        # Neither a pid nor anything with `_` in it: the stock collector splits file names there.
        identifier = str(seat.slot)
        self._value_class: Any = MutexValue if self.directory is None else MultiProcessValue(lambda: identifier)
        self._metrics: dict[str, MetricWrapperBase] = {}
        self._unshared: dict[str, MetricWrapperBase] = {}
        if self.directory is not None:
            for kind in ("counter", "histogram"):
                # Made whole before the library opens them: no reader ever meets an empty one.
                ReservedFile(str(self.directory / f"{kind}_{identifier}.db")).close()
        self._write_errors = self.child(families.WRITE_ERRORS)

    def child(self, family: Family, labels: Iterable[str] = ()) -> Any:
        """The counter or histogram of `family` with these label values. It is slow: keep what it returns.

        Where the file cannot grow, the child counts in this process alone, and that is logged and counted.
        """
        labels = tuple(labels)
        try:
            return self._child(family, labels, self._metrics, self._value_class)
        except OSError as error:
            log.error("series is not shared", extra={"family": family.name, "labels": ",".join(labels), "why": error})
            self._write_errors.inc()
            return self._child(family, labels, self._unshared, MutexValue)

    def _child(self, family: Family, labels: tuple[str, ...], made: dict[str, MetricWrapperBase], value: Any) -> Any:
        # The library takes all three from globals at the moment in which a child is made.
        values.ValueClass = value
        setattr(values, "MmapedDict", ReservedFile)  # noqa: B010 - the library does not export it
        if self.directory is not None:
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(self.directory)
        metric = made.get(family.name)
        if metric is None:
            registry = self.registry if made is self._metrics else None
            if family.kind == "counter":
                metric = Counter(family.name, family.help, family.labels, registry=registry)
            else:
                metric = Histogram(family.name, family.help, family.labels, registry=registry, buckets=family.buckets)
            made[family.name] = metric
        return metric.labels(*labels) if family.labels else metric

    def close(self) -> None:
        if self.directory is not None:
            self._value_class.close_all_files()
