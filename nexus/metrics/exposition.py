"""Families with their samples, and Prometheus's text format, version 0.0.4, that they are written in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from prometheus_client import Metric
from prometheus_client.utils import floatToGoString

from nexus.metrics.families import Family

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_PLAIN_BELOW = 1e6
"""From here on Go writes exponents where Python does not yet."""

Labels = Mapping[str, str]


@dataclass(slots=True)
class FamilyText:
    """What is written of a family whatever its values are: its head, and for each sample what goes before its value."""

    name: str
    head: str
    prefixes: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    labels: list[Labels] = field(default_factory=list)

    def add(self, name: str, labels: Labels) -> None:
        shown = ",".join(f'{key}="{_escaped(value)}"' for key, value in sorted(labels.items()))
        self.prefixes.append(f"{name}{{{shown}}} " if shown else f"{name} ")
        self.names.append(name)
        self.labels.append(labels)


@dataclass(slots=True)
class FamilyReading:
    """A family's samples at one moment."""

    text: FamilyText
    values: Sequence[float]

    def samples(self, name: str) -> list[tuple[Labels, float]]:
        """Labels and value of each sample of this name."""
        text = self.text
        rows = zip(text.names, text.labels, self.values, strict=True)
        return [(labels, value) for found, labels, value in rows if found == name]

    def exposition(self) -> str:
        numbers = [
            repr(value) if -_PLAIN_BELOW < value < _PLAIN_BELOW else floatToGoString(value) for value in self.values
        ]
        lines = zip(self.text.prefixes, numbers, strict=True)
        return self.text.head + "".join([f"{prefix}{number}\n" for prefix, number in lines])


def head(name: str, documentation: str, kind: str) -> str:
    shown = documentation.replace("\\", r"\\").replace("\n", r"\n")
    return f"# HELP {name} {shown}\n# TYPE {name} {kind}\n"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def of_family(family: Family, samples: Iterable[tuple[Sequence[str], float]]) -> FamilyReading:
    """A family of the table, from label values and value of each sample."""
    text = FamilyText(family.name, head(family.name, family.help, family.kind))
    values = []
    for labels, value in samples:
        text.add(family.name, dict(zip(family.labels, labels, strict=True)))
        values.append(float(value))
    return FamilyReading(text, values)


def of_metric(metric: Metric) -> FamilyReading:
    """A family of the library's; a counter gets the suffix that the text format wants."""
    name = f"{metric.name}_total" if metric.type == "counter" else metric.name
    text = FamilyText(name, head(name, metric.documentation, metric.type))
    values = []
    for sample in metric.samples:
        if not sample.name.endswith("_created"):
            text.add(sample.name, sample.labels)
            values.append(sample.value)
    return FamilyReading(text, values)
