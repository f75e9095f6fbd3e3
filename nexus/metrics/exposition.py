"""Families with their samples, and Prometheus's text format, version 0.0.4."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from prometheus_client import Metric
from prometheus_client.utils import floatToGoString

from nexus.metrics.family import Family

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_PLAIN_BELOW = 1e6
"""From here on Go writes exponents, and Python does not yet."""

Labels = Mapping[str, str]


class _Numbers(dict[float, str]):
    """Values as the text format writes them.

    Most are counts that occur again and again: a lookup is several times cheaper than formatting.
    """

    _MAX_ENTRIES = 1 << 14

    def __missing__(self, value: float) -> str:
        if len(self) >= self._MAX_ENTRIES:
            self.clear()
            self[0.0] = "0.0"  # and never "-0.0", which is the same key
        text = repr(value) if -_PLAIN_BELOW < value < _PLAIN_BELOW else floatToGoString(value)
        self[value] = text
        return text


_NUMBERS = _Numbers({0.0: "0.0"})


def format_numbers(values: Iterable[float]) -> Iterable[str]:
    return map(_NUMBERS.__getitem__, values)


@dataclass(slots=True)
class Layout:
    """What of a family does not depend on its values.

    Attributes:
        header: The lines HELP and TYPE, without the last line break.
        prefixes: For each sample the text before its value, with the line break that ends the line
            above.
    """

    name: str
    header: str
    prefixes: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    labels: list[Labels] = field(default_factory=list)

    @classmethod
    def of(cls, name: str, documentation: str, kind: str) -> Layout:
        """A layout without samples."""
        text = documentation.replace("\\", r"\\").replace("\n", r"\n")
        return cls(name, f"# HELP {name} {text}\n# TYPE {name} {kind}")

    def add(self, name: str, labels: Labels) -> str:
        """Add a sample; return its prefix."""
        text = ",".join(f'{key}="{_escaped(value)}"' for key, value in sorted(labels.items()))
        prefix = f"\n{name}{{{text}}} " if text else f"\n{name} "
        self.prefixes.append(prefix)
        self.names.append(name)
        self.labels.append(labels)
        return prefix


@dataclass(slots=True)
class FamilySnapshot:
    """A family's samples at one moment.

    Attributes:
        pieces: The text after the header: prefix and value of each sample in turn.
    """

    layout: Layout
    values: list[float] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, layout: Layout, values: list[float]) -> FamilySnapshot:
        pieces = [""] * (2 * len(values))
        pieces[::2] = layout.prefixes
        pieces[1::2] = format_numbers(values)
        return cls(layout, values, pieces)

    def copy(self) -> FamilySnapshot:
        return FamilySnapshot(self.layout, self.values.copy(), self.pieces.copy())

    def samples(self, name: str) -> list[tuple[Labels, float]]:
        """Labels and value of each sample of this name."""
        rows = zip(self.layout.names, self.layout.labels, self.values, strict=True)
        return [(labels, value) for sample, labels, value in rows if sample == name]

    def exposition(self) -> str:
        return f"{self.layout.header}{''.join(self.pieces)}\n"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def of_family(family: Family, samples: Sequence[tuple[tuple[str, ...], float]]) -> FamilySnapshot:
    """A family of the table, from label values and value of each sample."""
    layout = _layout(family, tuple([labels for labels, _ in samples]))
    return FamilySnapshot.of(layout, [float(value) for _, value in samples])


@lru_cache(maxsize=256)
def _layout(family: Family, samples: tuple[tuple[str, ...], ...]) -> Layout:
    layout = Layout.of(family.name, family.help, family.kind)
    for labels in samples:
        layout.add(family.name, dict(zip(family.labels, labels, strict=True)))
    return layout


def of_metric(metric: Metric) -> FamilySnapshot:
    """A family of the library's; a counter gets the suffix that the text format wants."""
    name = f"{metric.name}_total" if metric.type == "counter" else metric.name
    layout = Layout.of(name, metric.documentation, metric.type)
    samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
    for sample in samples:
        layout.add(sample.name, sample.labels)
    return FamilySnapshot.of(layout, [sample.value for sample in samples])
