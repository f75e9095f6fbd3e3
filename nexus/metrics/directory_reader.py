"""Reads the metrics files of all processes, fast.

prometheus_client's own collector parses every key of every file at every scrape. Here keys are
parsed once (`file_reader.py`), and only values that changed are added up and rendered again
(`aggregation.py`). For the same files the text is byte for byte that of the library.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import Metric
from prometheus_client.multiprocess import MultiProcessCollector

from nexus.fleet.load_table import Row
from nexus.metrics.aggregation import Aggregation, RetiredLabels
from nexus.metrics.exposition import FamilySnapshot
from nexus.metrics.file_reader import FileReader, SeriesIndex
from nexus.metrics.metrics_file import DamagedFile, bytes_in_use, entries

log = logging.getLogger("nexus.metrics")

DAMAGED = ".damaged"
"""Suffix of a damaged file that was renamed; the time follows it."""

Retired = tuple[tuple[str, ...], tuple[str, ...]]
"""Retired label values of models and of backends."""

_TICK_NS = 50_000_000
_MAX_READS = 5
_BETWEEN_READS_S = 0.0005


@dataclass(frozen=True, slots=True)
class _Listing:
    """The content of the directory.

    Attributes:
        modified: The directory's modification time in nanoseconds.
        settled: Whether that time was old enough when the directory was listed to be trusted.
        series: Files of counters, histograms and summaries, with their inodes.
    """

    modified: int = -1
    settled: bool = False
    series: tuple[tuple[str, int], ...] = ()
    gauges: tuple[str, ...] = ()
    damaged: int = 0

    def refreshed(self, directory: Path) -> _Listing:
        """The listing as it is now; this one if nothing changed or the directory is gone."""
        try:
            modified = directory.stat().st_mtime_ns
            if self.settled and modified == self.modified:
                return self
            # Times are coarse: a second change within the same tick would not show.
            settled = time.time_ns() - modified > _TICK_NS
            content = sorted((entry.name, entry.inode()) for entry in os.scandir(directory))
        except FileNotFoundError:
            return self
        files = [entry for entry in content if entry[0].endswith(".db")]
        return _Listing(
            modified=modified,
            settled=settled,
            series=tuple(entry for entry in files if not entry[0].startswith("gauge_")),
            gauges=tuple(name for name, _ in files if name.startswith("gauge_")),
            damaged=sum(DAMAGED in name for name, _ in content),
        )


class DirectoryReader:
    """Reads a directory of metrics files again and again, from one thread or greenlet at a time.

    Attributes:
        in_flight: The requests in flight at the moment of the last read.
    """

    def __init__(
        self,
        directory: Path,
        *,
        row: Callable[[str], Row | None] = lambda _slot: None,
        pause: Callable[[], None] = lambda: None,
    ) -> None:
        """`row` gives a slot's row by the name that its files have.

        `pause` is called often, for an event loop to go on; it decides itself whether it is time.
        """
        self.directory = directory
        self.in_flight = 0
        self._row = row
        self._pause = pause
        self._index = SeriesIndex()
        self._files: dict[str, FileReader] = {}
        self._slots: dict[str, list[FileReader]] = {}
        self._aggregations: dict[str, Aggregation] = {}
        self._listing = _Listing()
        self._gauges: tuple[object, list[Metric]] = (None, [])
        self._retired: Retired = ((), ())

    def read(self, retired: Retired = ((), ())) -> list[FamilySnapshot]:
        """All counters and histograms as they are now, in the library's order.

        Series with a label value in `retired` are added up under the value `retired`. A damaged
        file is set aside. If the directory is gone, the files that were open are still read.
        """
        copies = self._copy_all(retired)
        changed: dict[str, set[int]] = {kind: set() for kind in self._aggregations}
        for file, blocks in copies:
            changed[file.kind].update(file.update(blocks))
        for kind, aggregation in self._aggregations.items():
            aggregation.update(changed[kind])
        return [
            family
            for aggregation in self._aggregations.values()
            for family in aggregation.snapshots()
        ]

    def _copy_all(self, retired: Retired) -> list[tuple[FileReader, list[bytes]]]:
        """Copy the values of all files.

        A process adds the series of a request before it records the request. If a file has grown
        meanwhile, the copy may hold a request without its new series, so it is made again.
        """
        for _ in range(_MAX_READS):
            self._follow_directory(retired)
            self.in_flight = 0
            copies: list[tuple[FileReader, list[bytes]]] = []
            for slot, files in self._slots.items():
                blocks, in_flight = self._copy_slot(slot, files)
                self.in_flight += in_flight
                copies += zip(files, blocks, strict=True)
                self._pause()
            if not any(file.has_grown for file in self._files.values()):
                break
        return copies

    def _copy_slot(self, slot: str, files: list[FileReader]) -> tuple[list[list[bytes]], int]:
        """Copy a slot's files and its requests in flight, all of one moment if possible.

        The row's sequence number is a seqlock: its process makes it odd before it records a request
        and even after. If it was odd, or another after the copy than before, the copy may hold half
        of a request, so it is made again. If a process is killed while it records, the
        number stays odd, so the last of a few copies is used as it is.
        """
        row = self._row(slot)
        if row is None:
            return [file.read_blocks() for file in files], 0
        for attempt in range(_MAX_READS):
            before = row.sequence
            copies, in_flight = [file.read_blocks() for file in files], row.in_flight
            if before % 2 == 0 and row.sequence == before:
                break
            time.sleep(_BETWEEN_READS_S * attempt)
        return copies, in_flight

    def gauges(self) -> list[Metric]:
        """The gauge files, merged by the library; they are small, and parsed when they change."""
        contents = []
        for name in self._listing.gauges:
            with contextlib.suppress(FileNotFoundError):
                contents.append((str(self.directory / name), (self.directory / name).read_bytes()))
        if self._gauges[0] != contents:
            sound = []
            for name, data in contents:
                try:
                    for _ in entries(data, 0, bytes_in_use(data, len(data))):
                        pass
                    MultiProcessCollector.merge([name])
                    sound.append(name)
                except Exception as error:  # noqa: BLE001 - the library may raise anything
                    self._set_aside(Path(name).name, str(error))
            self._gauges = (contents, list(MultiProcessCollector.merge(sound)))
        return self._gauges[1]

    def damaged(self) -> int:
        """How many damaged files have been renamed, by any process."""
        return self._listing.damaged

    def _follow_directory(self, retired: Retired) -> None:
        listing = self._listing.refreshed(self.directory)
        changed = listing is not self._listing
        self._listing = listing
        if changed:
            self._open_files()
        if retired != self._retired:
            self._retired = retired
            changed = True
        for name, file in list(self._files.items()):
            try:
                changed = file.refresh() or changed
            except (DamagedFile, OSError) as error:
                file.close()
                del self._files[name]
                self._set_aside(name, str(error))
                changed = True
        if changed:
            self._aggregate()

    def _open_files(self) -> None:
        """Open new files; close those that are gone or were replaced."""
        known, self._files = self._files, {}
        for name, inode in self._listing.series:
            file = known.pop(name, None)
            if file is not None and file.inode != inode:
                file.close()
                file = None
            with contextlib.suppress(FileNotFoundError):
                self._files[name] = file or FileReader(
                    self.directory / name, self._index, pause=self._pause
                )
        for file in known.values():
            file.close()

    def _aggregate(self) -> None:
        by_kind: dict[str, list[FileReader]] = {}
        by_slot: dict[str, list[FileReader]] = {}
        for file in self._files.values():
            if file.numbers:
                by_kind.setdefault(file.kind, []).append(file)
                by_slot.setdefault(file.slot, []).append(file)
        self._slots = {slot: by_slot[slot] for slot in sorted(by_slot, key="{}.db".format)}
        retired = RetiredLabels(*self._retired)
        self._aggregations = {
            kind: Aggregation(kind, self._index, files, retired=retired, pause=self._pause)
            for kind, files in by_kind.items()
        }

    def _set_aside(self, name: str, why: str) -> None:
        log.error("damaged metrics file is set aside", extra={"file": name, "why": why})
        try:
            (self.directory / name).rename(self.directory / f"{name}{DAMAGED}-{time.time_ns()}")
        except OSError as error:
            log.error("metrics file cannot be renamed", extra={"file": name, "why": error})
        self._listing = self._listing.refreshed(self.directory)

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()
