"""Families with their samples, and Prometheus's text format, version 0.0.4, that they are written in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from prometheus_client import Metric
from prometheus_client.utils import floatToGoString

from nexus.metrics.families import Family

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_PLAIN_BELOW = 1e6
"""From here on Go writes exponents where Python does not yet."""

Labels = Mapping[str, str]


class _Numbers(dict[float, str]):
    """Values as the text format writes them. Most are counts that come again and again: looking up is several times
    cheaper than writing."""

    _MOST = 1 << 14

    def __missing__(self, value: float) -> str:
        if len(self) >= self._MOST:
            self.clear()
            self[0.0] = "0.0"  # and never "-0.0", which is the same key
        text = repr(value) if -_PLAIN_BELOW < value < _PLAIN_BELOW else floatToGoString(value)
        self[value] = text
        return text


_NUMBERS = _Numbers({0.0: "0.0"})


@dataclass(slots=True)
class FamilyText:
    """What is written of a family whatever its values are: its head, and for each sample what goes before its value,
    the line break that ends the line above included."""

    name: str
    head: str
    prefixes: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    labels: list[Labels] = field(default_factory=list)

    def add(self, name: str, labels: Labels) -> None:
        shown = ",".join(f'{key}="{_escaped(value)}"' for key, value in sorted(labels.items()))
        self.prefixes.append(f"\n{name}{{{shown}}} " if shown else f"\n{name} ")
        self.names.append(name)
        self.labels.append(labels)

    def rendered(self, pieces: Sequence[str]) -> str:
        """The whole text, from prefixes and numbers in turn."""
        return f"{self.head}{''.join(pieces)}\n"


@dataclass(slots=True)
class FamilySnapshot:
    """A family's samples at one moment; `rendered` where the text is there already."""

    text: FamilyText
    values: Sequence[float]
    rendered: str | None = None

    def samples(self, name: str) -> list[tuple[Labels, float]]:
        """Labels and value of each sample of this name."""
        text = self.text
        rows = zip(text.names, text.labels, self.values, strict=True)
        return [(labels, value) for found, labels, value in rows if found == name]

    def exposition(self) -> str:
        if self.rendered is not None:
            return self.rendered
        pieces = [""] * (2 * len(self.values))
        pieces[::2] = self.text.prefixes
        pieces[1::2] = numbers(self.values)
        return self.text.rendered(pieces)


def numbers(values: Iterable[float]) -> Iterable[str]:
    """Values as the text format writes them."""
    return map(_NUMBERS.__getitem__, values)


def head(name: str, documentation: str, kind: str) -> str:
    shown = documentation.replace("\\", r"\\").replace("\n", r"\n")
    return f"# HELP {name} {shown}\n# TYPE {name} {kind}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def of_family(family: Family, samples: Sequence[tuple[tuple[str, ...], float]]) -> FamilySnapshot:
    """A family of the table, from label values and value of each sample."""
    return FamilySnapshot(
        _text(family, tuple([labels for labels, _ in samples])), [float(v) for _, v in samples]
    )


@lru_cache(maxsize=256)
def _text(family: Family, samples: tuple[tuple[str, ...], ...]) -> FamilyText:
    text = FamilyText(family.name, head(family.name, family.help, family.kind))
    for labels in samples:
        text.add(family.name, dict(zip(family.labels, labels, strict=True)))
    return text


def of_metric(metric: Metric) -> FamilySnapshot:
    """A family of the library's; a counter gets the suffix that the text format wants."""
    name = f"{metric.name}_total" if metric.type == "counter" else metric.name
    text = FamilyText(name, head(name, metric.documentation, metric.type))
    values = []
    for sample in metric.samples:
        if not sample.name.endswith("_created"):
            text.add(sample.name, sample.labels)
            values.append(sample.value)
    return FamilySnapshot(text, values)
