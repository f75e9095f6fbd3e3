"""Reading all processes' figures fast: only what is new is parsed, and only what changed is looked at again.

prometheus_client's own collector parses every key of every file at every scrape. Here each file's keys are parsed once
(`countfile.py`), values that changed are added up anew, and the sums are put behind lines that were rendered beforehand
(`plan.py`). For the same files the text is the same to the byte as the library's.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from prometheus_client import Metric
from prometheus_client.multiprocess import MultiProcessCollector

from nexus.metrics.countfile import CountFile, Series
from nexus.metrics.exposition import FamilySnapshot
from nexus.metrics.files import DamagedFile, bytes_in_use, entries
from nexus.metrics.plan import Plan, Shown

log = logging.getLogger("nexus.metrics")

DAMAGED = ".damaged"
"""What is put behind the name of a file that was set aside, before the time at which that was."""

Retired = tuple[tuple[str, ...], tuple[str, ...]]
"""Label values of models and of backends that were given back."""

_TICK_NS = 50_000_000
_TRIES = 5
_BETWEEN_TRIES_S = 0.0005


@dataclass(frozen=True, slots=True)
class _Listing:
    """What was in the directory at `modified`: files of counts with their inodes, gauges' files, damaged ones."""

    modified: int = -1
    settled: bool = False
    counts: tuple[tuple[str, int], ...] = ()
    gauges: tuple[str, ...] = ()
    damaged: int = 0

    def again(self, directory: Path) -> _Listing:
        """The listing as it is now; this one where nothing changed, or where the directory is gone."""
        try:
            modified = directory.stat().st_mtime_ns
            if self.settled and modified == self.modified:
                return self
            # Times are coarse: what comes within the same tick would not show. So an old time alone is believed.
            settled = time.time_ns() - modified > _TICK_NS
            found = sorted((entry.name, entry.inode()) for entry in os.scandir(directory))
        except FileNotFoundError:
            return self
        files = [entry for entry in found if entry[0].endswith(".db")]
        return _Listing(
            modified=modified,
            settled=settled,
            counts=tuple(entry for entry in files if not entry[0].startswith("gauge_")),
            gauges=tuple(name for name, _ in files if name.startswith("gauge_")),
            damaged=sum(DAMAGED in name for name, _ in found),
        )


class Rows(Protocol):
    """What a reader asks of the slots' rows in the load table."""

    def sequence(self, slot: str) -> int:
        """A number that is odd while the slot's process records, and another one after that."""

    def in_flight(self, slot: str) -> int:
        """The requests that the slot's process has started and not finished."""


class FileReader:
    """Reads a directory of metrics files again and again. For one thread or greenlet at a time."""

    def __init__(
        self, directory: Path, *, rows: Rows | None = None, pause: Callable[[], None] = lambda: None
    ) -> None:
        """With `rows`, what was read of a slot while it recorded is read again, a few times at most. `pause` is called
        often, for an event loop to go on; it decides itself whether it is time to."""
        self.directory = directory
        self.in_flight = 0
        self._rows = rows
        self._pause = pause
        self._series = Series()
        self._files: dict[str, CountFile] = {}
        self._slots: dict[str, list[CountFile]] = {}
        self._plans: dict[str, Plan] = {}
        self._listing = _Listing()
        self._gauges: tuple[object, list[Metric]] = (None, [])
        self._retired: Retired = ((), ())

    def read(self, retired: Retired = ((), ())) -> list[FamilySnapshot]:
        """The figures of all files as they stand now, in the order in which the library gives them.

        Series with a label value in `retired` are added up under the value `retired`.
        A file that is damaged is set aside; a directory that is gone leaves the files that were known.
        `in_flight` is then the number of requests in flight that belongs to these figures.
        """
        self._follow_directory(retired)
        self.in_flight = 0
        changed: dict[str, set[int]] = {kind: set() for kind in self._plans}
        for slot, files in self._slots.items():
            seen, in_flight = self._look(slot, files)
            self.in_flight += in_flight
            for file, blocks in zip(files, seen, strict=True):
                changed[file.kind].update(file.take(blocks))
            self._pause()
        for kind, plan in self._plans.items():
            plan.add_up(changed[kind])
        return [reading for plan in self._plans.values() for reading in plan.readings()]

    def _look(self, slot: str, files: list[CountFile]) -> tuple[list[list[bytes]], int]:
        """A slot's files and its requests in flight, all of one moment where that can be had."""
        for attempt in range(_TRIES):
            before = self._rows.sequence(slot) if self._rows else 0
            seen = [file.look() for file in files]
            in_flight = self._rows.in_flight(slot) if self._rows else 0
            if self._rows is None or (before % 2 == 0 and self._rows.sequence(slot) == before):
                break
            time.sleep(_BETWEEN_TRIES_S * attempt)
        return seen, in_flight

    def gauges(self) -> list[Metric]:
        """The gauges' files, by the library's own rules: they are few and small, and parsed only when they changed."""
        found = []
        for name in self._listing.gauges:
            with contextlib.suppress(FileNotFoundError):
                found.append((str(self.directory / name), (self.directory / name).read_bytes()))
        if self._gauges[0] != found:
            sound = []
            for name, data in found:
                try:
                    for _ in entries(data, 0, bytes_in_use(data, len(data))):
                        pass
                    MultiProcessCollector.merge([name])
                    sound.append(name)
                except Exception as error:  # noqa: BLE001 - whatever the library makes of damaged bytes
                    self._set_aside(Path(name).name, str(error))
            self._gauges = (found, list(MultiProcessCollector.merge(sound)))
        return self._gauges[1]

    def damaged(self) -> int:
        """How many files have been set aside, by whichever process."""
        return self._listing.damaged

    def _follow_directory(self, retired: Retired) -> None:
        listing = self._listing.again(self.directory)
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
            self._plan()

    def _open_files(self) -> None:
        """Open what has come, close what is gone or was replaced."""
        known, self._files = self._files, {}
        for name, inode in self._listing.counts:
            file = known.pop(name, None)
            if file is not None and file.inode != inode:
                file.close()
                file = None
            with contextlib.suppress(FileNotFoundError):
                self._files[name] = file or CountFile(
                    self.directory / name, self._series, pause=self._pause
                )
        for file in known.values():
            file.close()

    def _plan(self) -> None:
        by_kind: dict[str, list[CountFile]] = {}
        self._slots = {}
        for file in self._files.values():
            if file.numbers:
                by_kind.setdefault(file.kind, []).append(file)
                self._slots.setdefault(file.slot, []).append(file)
        self._slots = {slot: self._slots[slot] for slot in sorted(self._slots, key="{}.db".format)}
        shown = Shown(*self._retired)
        self._plans = {
            kind: Plan(kind, self._series, files, shown=shown, pause=self._pause)
            for kind, files in by_kind.items()
        }

    def _set_aside(self, name: str, why: str) -> None:
        log.error("metrics file is damaged and set aside", extra={"file": name, "why": why})
        try:
            (self.directory / name).rename(self.directory / f"{name}{DAMAGED}-{time.time_ns()}")
        except OSError as error:
            log.error("it cannot be renamed", extra={"file": name, "why": error})
        self._listing = self._listing.again(self.directory)

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()
