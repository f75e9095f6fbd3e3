"""Reading all processes' figures fast: only what is new is parsed, of the rest only the numbers are read again.

prometheus_client's own collector parses every key of every file at every scrape. Files are append-only and values stay
where they are, so here each file is mapped once and its keys are parsed once. A scrape then takes the doubles of each
file in one C call, in an order in which the files' values can be added up pairwise, and puts them behind lines that
were rendered beforehand. For the same files the text is the same to the byte as the library's.
"""

from __future__ import annotations

import contextlib
import json
import logging
import mmap
import os
import time
from collections.abc import Callable, Sequence
from itertools import chain
from operator import add, itemgetter
from pathlib import Path
from typing import Protocol

from prometheus_client import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.utils import floatToGoString

from nexus.metrics.exposition import FamilyReading, FamilyText, head
from nexus.metrics.files import DamagedFile, bytes_in_use, entries

log = logging.getLogger("nexus.metrics")

DAMAGED = ".damaged"
"""What is put behind the name of a file that was set aside, before the time at which that was."""

_KEYS_BETWEEN_PAUSES = 256
_TRIES = 5


class _Series:
    """Numbers for keys, the same for a key in whichever file it stands, and each key taken apart once."""

    def __init__(self, pause: Callable[[], None]) -> None:
        self._pause = pause
        self._numbers: dict[bytes, int] = {}
        self.keys: list[tuple[str, str, dict[str, str], str]] = []  # metric, sample name, labels, documentation

    def number(self, key: bytes) -> int:
        number = self._numbers.get(key)
        if number is None:
            try:
                metric, name, labels, documentation = json.loads(key)
            except ValueError as error:
                raise DamagedFile("a key makes no sense") from error
            number = self._numbers[key] = len(self.keys)
            self.keys.append((metric, name, labels, documentation))
            if number % _KEYS_BETWEEN_PAUSES == 0:
                self._pause()
        return number


class _File:
    """One counter, histogram or summary file: its keys, parsed once, and where their values are."""

    def __init__(self, path: Path, series: _Series) -> None:
        self.kind, _, self.slot = path.stem.partition("_")
        self.ids: list[int] = []
        self._series = series
        self._indices: list[int] = []
        self._parsed = 0
        self._size = 0
        self._ordered: tuple[Sequence[int], Callable[[memoryview[float]], tuple[float, ...]]] | None = None
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.inode = os.fstat(self._fd).st_ino
        self._map: mmap.mmap | None = None
        self._doubles: memoryview[float] | None = None

    def refresh(self) -> bool:
        """Take up what was appended; True where there are new series. Raises `DamagedFile` or OSError."""
        size = os.fstat(self._fd).st_size
        if size != self._size or self._map is None:
            self._release()
            if size < 8:
                raise DamagedFile("it is empty")
            self._map = mmap.mmap(self._fd, size, access=mmap.ACCESS_READ)
            self._doubles = memoryview(self._map)[: size // 8 * 8].cast("d")
            self._size = size
        used = bytes_in_use(self._map, size)
        if used == self._parsed:
            return False
        if used < self._parsed:
            raise DamagedFile("it has shrunk")
        ids, indices = [], []
        for key, index in entries(self._map[:used], self._parsed, used):
            ids.append(self._series.number(key))
            indices.append(index)
        self.ids += ids
        self._indices += indices
        self._parsed = used
        self._ordered = None
        return True

    def values(self, order: Sequence[int]) -> tuple[float, ...]:
        """The values of the series `order`, 0.0 for those that the file does not have; one C call where `order` is the
        one of the last time."""
        assert self._doubles is not None
        if self._ordered is None or self._ordered[0] is not order:
            at = dict(zip(self.ids, self._indices, strict=True))
            # A timestamp of a counter is always 0.0: it stands for the values that are not there.
            nothing = self._indices[0] + 1
            # Twice the last one: for a single index, itemgetter would give no tuple.
            places = [at.get(series, nothing) for series in order]
            self._ordered = (order, itemgetter(*places, nothing))
        return self._ordered[1](self._doubles)

    def _release(self) -> None:
        if self._doubles is not None:
            self._doubles.release()
        if self._map is not None:
            self._map.close()
        self._map = self._doubles = None

    def close(self) -> None:
        self._release()
        os.close(self._fd)


class _Plan:
    """How the series of one kind of file become families: their order, and the lines before the values."""

    def __init__(self, kind: str, series: _Series, order: Sequence[int]) -> None:
        self.order = order
        self.families: list[tuple[FamilyText, Callable[[Sequence[float]], list[float]]]] = []
        grouped: dict[str, _Members] = {}
        for position, number in enumerate(order):
            metric, name, labels, documentation = series.keys[number]
            grouped.setdefault(metric, []).append((position, name, labels, documentation))
        for metric, members in grouped.items():
            exposed = f"{metric}_total" if kind == "counter" else metric
            text = FamilyText(exposed, head(exposed, members[0][3], kind))
            make = _cumulate if kind == "histogram" else _pick
            self.families.append((text, make(metric, members, text)))


_Members = list[tuple[int, str, dict[str, str], str]]


def _pick(_metric: str, members: _Members, text: FamilyText) -> Callable[[Sequence[float]], list[float]]:
    """A counter's or summary's samples are its series, those with the same labels side by side."""
    by_labels: dict[tuple[tuple[str, str], ...], list[tuple[int, str, dict[str, str]]]] = {}
    for position, name, labels, _ in members:
        by_labels.setdefault(tuple(sorted(labels.items())), []).append((position, name, labels))
    positions = []
    for position, name, labels in chain.from_iterable(by_labels.values()):
        positions.append(position)
        text.add(name, labels)
    return lambda values: [values[position] for position in positions]


def _cumulate(metric: str, members: _Members, text: FamilyText) -> Callable[[Sequence[float]], list[float]]:
    """A histogram's buckets are stored apart and exposed as running sums, `_count` being the last of them."""
    others: dict[tuple[tuple[str, str], ...], list[tuple[int, str]]] = {}
    buckets: dict[tuple[tuple[str, str], ...], dict[float, list[int]]] = {}
    for position, name, labels, _ in members:
        if "le" in labels:
            without = tuple(sorted(item for item in labels.items() if item[0] != "le"))
            buckets.setdefault(without, {}).setdefault(float(labels["le"]), []).append(position)
        else:
            others.setdefault(tuple(sorted(labels.items())), []).append((position, name))
    steps: list[tuple[list[int], list[list[int]]]] = []
    for key in dict.fromkeys([*others, *buckets]):
        alone = [position for position, _ in others.get(key, [])]
        for _, name in others.get(key, []):
            text.add(name, dict(key))
        bounds = sorted(buckets.get(key, {}).items())
        for bound, _ in bounds:
            text.add(f"{metric}_bucket", {**dict(key), "le": floatToGoString(bound)})
        if bounds:
            text.add(f"{metric}_count", dict(key))
        steps.append((alone, [positions for _, positions in bounds]))

    def values_of(values: Sequence[float]) -> list[float]:
        result: list[float] = []
        for alone, bounds in steps:
            for position in alone:
                result.append(values[position])
            if bounds:
                running = 0.0
                for positions in bounds:
                    for position in positions:
                        running += values[position]
                    result.append(running)
                result.append(running)
        return result

    return values_of


class Rows(Protocol):
    """What a reader asks of the slots' rows in the load table."""

    def sequence(self, slot: str) -> int:
        """A number that is odd while the slot's process records, and another one after that."""

    def in_flight(self, slot: str) -> int:
        """The requests that the slot's process has started and not finished."""


class FileReader:
    """Reads a directory of metrics files again and again. For one thread or greenlet at a time."""

    def __init__(self, directory: Path, *, rows: Rows | None = None, pause: Callable[[], None] = lambda: None) -> None:
        """With `rows`, what was read of a slot while it recorded is read again, a few times at most. `pause` is called
        now and then, for an event loop to go on."""
        self.directory = directory
        self.in_flight = 0
        self._rows = rows
        self._pause = pause
        self._series = _Series(pause)
        self._files: dict[str, _File] = {}
        self._slots: dict[str, list[_File]] = {}
        self._plans: dict[str, _Plan] = {}
        self._gauges: tuple[object, list[Metric]] = (None, [])

    def read(self) -> list[FamilyReading]:
        """The figures of all files as they stand now, in the order in which the library gives them.

        A file that is damaged is set aside; a directory that is gone leaves the files that were known.
        `in_flight` is then the number of requests in flight that belongs to these figures.
        """
        self._follow_directory()
        in_flight = 0
        parts: dict[str, list[tuple[float, ...]]] = {kind: [] for kind in self._plans}
        for slot, files in self._slots.items():
            taken, flying = self._take(slot, files)
            in_flight += flying
            for kind, values in taken.items():
                parts[kind].append(values)
            self._pause()
        self.in_flight = in_flight
        readings = []
        for kind, plan in self._plans.items():
            totals = _sums(parts[kind])
            readings += [FamilyReading(text, values_of(totals)) for text, values_of in plan.families]
        return readings

    def _take(self, slot: str, files: list[_File]) -> tuple[dict[str, tuple[float, ...]], int]:
        """A slot's values and its requests in flight, all of one moment where that can be had."""
        for attempt in range(_TRIES):
            before = self._rows.sequence(slot) if self._rows else 0
            values = {file.kind: file.values(self._plans[file.kind].order) for file in files}
            flying = self._rows.in_flight(slot) if self._rows else 0
            if self._rows is None or (before % 2 == 0 and self._rows.sequence(slot) == before):
                break
            if attempt:
                self._pause()
        return values, flying

    def gauges(self) -> list[Metric]:
        """The gauges' files, by the library's own rules: they are few and small, and parsed only when they changed."""
        found = []
        for path in sorted(self.directory.glob("gauge_*.db")):
            with contextlib.suppress(FileNotFoundError):
                found.append((str(path), path.read_bytes()))
        if self._gauges[0] != found:
            sound = []
            for name, data in found:
                try:
                    for _ in entries(data, 0, bytes_in_use(data, len(data))):
                        pass
                    MultiProcessCollector.merge([name])
                    sound.append(name)
                except Exception as error:  # noqa: BLE001 - whatever the library makes of damaged bytes
                    self._set_aside(Path(name), str(error))
            self._gauges = (found, list(MultiProcessCollector.merge(sound)))
        return self._gauges[1]

    def damaged(self) -> int:
        """How many files have been set aside, by whichever process."""
        try:
            return sum(DAMAGED in entry.name for entry in os.scandir(self.directory))
        except FileNotFoundError:
            return 0

    def _follow_directory(self) -> None:
        try:
            present = sorted(
                (entry.name, entry.inode())
                for entry in os.scandir(self.directory)
                if entry.name.endswith(".db") and not entry.name.startswith("gauge_")
            )
        except FileNotFoundError:
            present = [(name, file.inode) for name, file in sorted(self._files.items())]
        changed = [name for name, _ in present] != list(self._files)
        files: dict[str, _File] = {}
        for name, inode in present:
            file = self._files.pop(name, None)
            try:
                if file is not None and file.inode != inode:
                    file.close()
                    file = None
                if file is None:
                    file = _File(self.directory / name, self._series)
                    changed = True
                changed = file.refresh() or changed
            except FileNotFoundError:
                changed = True
                continue
            except (DamagedFile, OSError) as error:
                if file is not None:
                    file.close()
                self._set_aside(self.directory / name, str(error))
                changed = True
                continue
            files[name] = file
        for file in self._files.values():
            file.close()
            changed = True
        self._files = files
        if changed:
            self._plan()

    def _plan(self) -> None:
        by_kind: dict[str, list[_File]] = {}
        self._slots = {}
        for file in self._files.values():
            if file.ids:
                by_kind.setdefault(file.kind, []).append(file)
                self._slots.setdefault(file.slot, []).append(file)
        self._slots = {slot: self._slots[slot] for slot in sorted(self._slots, key="{}.db".format)}
        self._plans = {
            kind: _Plan(kind, self._series, tuple(dict.fromkeys(chain.from_iterable(file.ids for file in files))))
            for kind, files in by_kind.items()
        }

    def _set_aside(self, path: Path, why: str) -> None:
        log.error("metrics file is damaged and set aside", extra={"file": path.name, "why": why})
        try:
            path.rename(path.with_name(f"{path.name}{DAMAGED}-{time.time_ns()}"))
        except OSError as error:
            log.error("it cannot be renamed", extra={"file": path.name, "why": error})

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()


def _sums(parts: list[tuple[float, ...]]) -> Sequence[float]:
    """The columns' sums, added in the order of the rows."""
    totals: Sequence[float] = parts[0]
    for part in parts[1:]:
        totals = list(map(add, totals, part))
    return totals
