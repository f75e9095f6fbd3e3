"""Adds up the series of many files into families.

An aggregation keeps what it has rendered. An update touches only the groups of samples in which a
value has changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate, chain

from prometheus_client.utils import floatToGoString

from nexus.metrics.exposition import FamilySnapshot, Layout, format_numbers
from nexus.metrics.family import shown_name
from nexus.metrics.file_reader import FileReader, Key, SeriesIndex
from nexus.metrics.labels import RETIRED

_GROUPS_BETWEEN_PAUSES = 25
_SUMS_BETWEEN_PAUSES = 500

_MODEL_LABELS = frozenset({"model", "from_model", "to_model"})
_Labels = tuple[tuple[str, str], ...]
_Members = list[tuple[int, Key]]
_Positions = list[int]
"""Positions of the series that are added up into one sample.

There are several for retired labels, or if a bound is written in two ways (`1`, `1.0`).
"""


class RetiredLabels:
    """Retired label values, whose series are shown under `retired`."""

    def __init__(self, models: Iterable[str] = (), backends: Iterable[str] = ()) -> None:
        self._models = frozenset(models)
        self._backends = frozenset(backends)

    def labels(self, key: Key) -> _Labels:
        """The labels under which a series is shown, sorted."""
        if not self._models and not self._backends:
            return tuple(sorted(key.labels.items()))
        return tuple(sorted((name, self._value(name, value)) for name, value in key.labels.items()))

    def _value(self, name: str, value: str) -> str:
        if name in _MODEL_LABELS:
            return RETIRED if value in self._models else value
        return RETIRED if name == "backend" and value in self._backends else value


class _Group:
    """Samples of a family with the same labels.

    A histogram's buckets are exposed as running sums, and the last one also as the count.
    """

    __slots__ = ("_at", "_buckets", "_divisor", "_family", "_singles")

    def __init__(
        self,
        family: FamilySnapshot,
        singles: list[_Positions],
        buckets: list[_Positions],
        *,
        divisor: int,
    ) -> None:
        self._family = family
        self._divisor = divisor
        self._at = len(family.values)
        self._singles = singles
        self._buckets = buckets

    def write(self, totals: Sequence[float]) -> None:
        values = [_sum(totals, positions) for positions in self._singles]
        if self._divisor != 1:
            values = [value / self._divisor for value in values]
        if self._buckets:
            values += accumulate([_sum(totals, positions) for positions in self._buckets])
            values.append(values[-1])
        family, start, end = self._family, self._at, self._at + len(values)
        family.values[start:end] = values
        family.pieces[2 * start + 1 : 2 * end : 2] = format_numbers(values)


def _sum(totals: Sequence[float], positions: _Positions) -> float:
    if len(positions) == 1:
        return totals[positions[0]]
    return sum([totals[position] for position in positions])


class Aggregation:
    """The files of one kind: the order of their series, their sums, and the families of these."""

    def __init__(
        self,
        kind: str,
        index: SeriesIndex,
        files: Sequence[FileReader],
        *,
        retired: RetiredLabels,
        pause: Callable[[], None],
    ) -> None:
        """`pause` is called now and then, here and in `update`, for an event loop to go on."""
        self._retired = retired
        self._pause = pause
        order = dict.fromkeys(chain.from_iterable(file.numbers for file in files))
        positions = {number: position for position, number in enumerate(order)}
        for file in files:
            file.set_positions(positions)
            pause()
        self._columns = [file.values for file in files]
        self._totals = [0.0] * len(positions)
        self._groups: dict[int, _Group] = {}
        self._families: list[FamilySnapshot] = []
        by_metric: dict[str, _Members] = {}
        for number, position in positions.items():
            key = index.keys[number]
            by_metric.setdefault(key.metric, []).append((position, key))
        for metric, members in by_metric.items():
            name, divisor = shown_name(f"{metric}_total") if kind == "counter" else (metric, 1)
            family = FamilySnapshot(Layout.of(name, members[0][1].documentation, kind))
            self._families.append(family)
            self._add_groups(metric, members, family, cumulate=kind == "histogram", divisor=divisor)

    def _add_groups(
        self,
        metric: str,
        members: _Members,
        family: FamilySnapshot,
        *,
        cumulate: bool,
        divisor: int,
    ) -> None:
        """Put samples with the same labels side by side, in the library's order."""
        singles: dict[_Labels, dict[str, _Positions]] = {}
        buckets: dict[_Labels, dict[float, _Positions]] = {}
        for number, (position, key) in enumerate(members):
            if number % _SUMS_BETWEEN_PAUSES == 0:
                self._pause()
            labels = self._retired.labels(key)
            if cumulate and "le" in key.labels:
                labels = tuple(item for item in labels if item[0] != "le")
                bounds = buckets.setdefault(labels, {})
                bounds.setdefault(float(key.labels["le"]), []).append(position)
            else:
                singles.setdefault(labels, {}).setdefault(key.name, []).append(position)
        for number, labels in enumerate(dict.fromkeys([*singles, *buckets])):
            if number % _GROUPS_BETWEEN_PAUSES == 0:
                self._pause()
            by_name = singles.get(labels, {})
            by_bound = dict(sorted(buckets.get(labels, {}).items()))
            group = _Group(family, [*by_name.values()], [*by_bound.values()], divisor=divisor)
            for position in chain(*by_name.values(), *by_bound.values()):
                self._groups[position] = group
            for name in by_name:
                _add_sample(family, shown_name(name)[0], labels)
            for bound in by_bound:
                _add_sample(family, f"{metric}_bucket", (*labels, ("le", floatToGoString(bound))))
            if by_bound:
                _add_sample(family, f"{metric}_count", labels)

    def update(self, changed: Iterable[int]) -> None:
        """Add up the values at these positions, in the order of the files, and render the sums."""
        totals, columns = self._totals, self._columns
        groups = set()
        for number, position in enumerate(changed):
            if number % _SUMS_BETWEEN_PAUSES == _SUMS_BETWEEN_PAUSES - 1:
                self._pause()
            total = 0.0
            for column in columns:
                total += column[position]
            totals[position] = total
            groups.add(self._groups[position])
        for number, group in enumerate(groups):
            if number % _GROUPS_BETWEEN_PAUSES == _GROUPS_BETWEEN_PAUSES - 1:
                self._pause()
            group.write(totals)

    def snapshots(self) -> list[FamilySnapshot]:
        return [family.copy() for family in self._families]


def _add_sample(family: FamilySnapshot, name: str, labels: _Labels) -> None:
    family.pieces += (family.layout.add(name, dict(labels)), "0.0")
    family.values.append(0.0)
