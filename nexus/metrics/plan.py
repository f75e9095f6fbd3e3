"""From the series of many files to families: which are added up, and where each sum is written.

What a plan has rendered stays; a reading touches the groups of samples only in which a value has changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate, chain

from prometheus_client.utils import floatToGoString

from nexus.metrics.countfile import CountFile, Key, Series
from nexus.metrics.exposition import FamilySnapshot, FamilyText, head, numbers
from nexus.metrics.labels import RETIRED

_GROUPS_BETWEEN_PAUSES = 25
_SUMS_BETWEEN_PAUSES = 500

_MODEL_LABELS = frozenset({"model", "from_model", "to_model"})
_Labels = tuple[tuple[str, str], ...]
_Members = list[tuple[int, Key]]


class Shown:
    """How a series' labels are shown: values that were given back become `retired`."""

    def __init__(self, models: Iterable[str] = (), backends: Iterable[str] = ()) -> None:
        self._models = frozenset(models)
        self._backends = frozenset(backends)

    def labels(self, key: Key) -> _Labels:
        if not self._models and not self._backends:
            return tuple(sorted(key.labels.items()))
        return tuple(sorted((name, self._value(name, value)) for name, value in key.labels.items()))

    def _value(self, name: str, value: str) -> str:
        retired = (
            self._models if name in _MODEL_LABELS else self._backends if name == "backend" else ()
        )
        return RETIRED if value in retired else value


class _Family:
    """A family's samples as they were last written."""

    def __init__(self, text: FamilyText) -> None:
        self.text = text
        self.values: list[float] = []
        self.pieces: list[str] = []

    def add(self, name: str, labels: _Labels) -> None:
        self.text.add(name, dict(labels))
        self.values.append(0.0)
        self.pieces += [self.text.prefixes[-1], "0.0"]

    def write(self, at: int, values: Sequence[float]) -> None:
        self.values[at : at + len(values)] = values
        self.pieces[2 * at + 1 : 2 * (at + len(values)) : 2] = numbers(values)

    def reading(self) -> FamilySnapshot:
        return FamilySnapshot(self.text, self.values.copy(), self.text.rendered(self.pieces))


class _Group:
    """Samples with the same labels: single values, and a histogram's buckets, which are exposed as running sums."""

    __slots__ = ("_alone", "_at", "_buckets", "_family")

    def __init__(self, family: _Family, alone: list[list[int]], buckets: list[list[int]]) -> None:
        self._family = family
        self._at = len(family.values)
        self._alone = alone
        self._buckets = buckets

    def write(self, totals: Sequence[float]) -> None:
        # Several positions are one sample: retired labels, or a bound that is written in two ways (`1`, `1.0`).
        values = [
            totals[positions[0]]
            if len(positions) == 1
            else sum([totals[position] for position in positions])
            for positions in self._alone
        ]
        if self._buckets:
            values += accumulate(
                totals[positions[0]]
                if len(positions) == 1
                else sum([totals[position] for position in positions])
                for positions in self._buckets
            )
            values.append(values[-1])
        self._family.write(self._at, values)


class Plan:
    """The files of one kind: the order of their series, their sums, and the families that these become."""

    def __init__(
        self,
        kind: str,
        series: Series,
        files: Sequence[CountFile],
        *,
        shown: Shown,
        pause: Callable[[], None],
    ) -> None:
        """`pause` is called now and then, here and in `add_up`, for an event loop to go on."""
        self._shown = shown
        self._pause = pause
        order = dict.fromkeys(chain.from_iterable(file.numbers for file in files))
        positions = {number: position for position, number in enumerate(order)}
        for file in files:
            file.arrange(positions)
            pause()
        self._columns = [file.values for file in files]
        self._totals = [0.0] * len(positions)
        self._groups: dict[int, _Group] = {}
        self._families: list[_Family] = []
        by_metric: dict[str, _Members] = {}
        for number, position in positions.items():
            key = series.keys[number]
            by_metric.setdefault(key.metric, []).append((position, key))
        for metric, members in by_metric.items():
            exposed = f"{metric}_total" if kind == "counter" else metric
            family = _Family(FamilyText(exposed, head(exposed, members[0][1].documentation, kind)))
            self._families.append(family)
            self._group(metric, members, family, cumulate=kind == "histogram")

    def _group(self, metric: str, members: _Members, family: _Family, *, cumulate: bool) -> None:
        """Put samples with the same labels side by side, in the order in which the library does."""
        alone: dict[_Labels, dict[str, list[int]]] = {}
        buckets: dict[_Labels, dict[float, list[int]]] = {}
        for number, (position, key) in enumerate(members):
            if number % _SUMS_BETWEEN_PAUSES == 0:
                self._pause()
            labels = self._shown.labels(key)
            if cumulate and "le" in key.labels:
                without = tuple(item for item in labels if item[0] != "le")
                buckets.setdefault(without, {}).setdefault(float(key.labels["le"]), []).append(
                    position
                )
            else:
                alone.setdefault(labels, {}).setdefault(key.name, []).append(position)
        for number, labels in enumerate(dict.fromkeys([*alone, *buckets])):
            if number % _GROUPS_BETWEEN_PAUSES == 0:
                self._pause()
            bounds = sorted(buckets.get(labels, {}).items())
            singles = alone.get(labels, {})
            group = _Group(family, list(singles.values()), [places for _, places in bounds])
            for position in chain(*singles.values(), *(places for _, places in bounds)):
                self._groups[position] = group
            for name in singles:
                family.add(name, labels)
            for bound, _ in bounds:
                family.add(f"{metric}_bucket", (*labels, ("le", floatToGoString(bound))))
            if bounds:
                family.add(f"{metric}_count", labels)

    def add_up(self, changed: Iterable[int]) -> None:
        """Add up anew the values at these positions, in the order of the files, and write what they belong to."""
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

    def readings(self) -> list[FamilySnapshot]:
        return [family.reading() for family in self._families]
