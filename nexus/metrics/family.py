"""What a metric family is: its name, type, labels, buckets, and the values of each label."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any, Literal

Kind = Literal["counter", "gauge", "histogram"]
Source = Literal["workers", "health", "scrape"]
Names = Literal[
    "models", "backends", "endpoints", "slots", "keys", "teams", "limits", "budgets", "subjects"
]


NANO = 1_000_000_000
_DOLLARS, _STORED = "_usd_total", "_nanousd_total"


@dataclass(frozen=True)
class Label:
    """The values that a label can have.

    Attributes:
        values: Values that are always possible.
        names: What gives the label further values: one for each model, backend and so on.
    """

    values: tuple[str, ...] = ()
    names: Names | None = None

    def size(self, limits: Mapping[Names, int]) -> int:
        """How many values there can be, if there are at most so many names."""
        return len(self.values) + (limits[self.names] if self.names else 0)


@dataclass(frozen=True, kw_only=True, eq=False)
class Family:
    """One metric family.

    Attributes:
        label_values: Its labels, each with the values that it can have.
        source: Who moves it: `workers` (each process counts, readers add up), `health` (the health
            process alone), or `scrape` (rendered by the process that serves the scrape).
    """

    name: str
    kind: Kind
    help: str
    label_values: Mapping[str, Label] = field(default_factory=dict, repr=False)
    buckets: tuple[float, ...] = ()
    source: Source = "workers"

    @cached_property
    def stored_name(self) -> str:
        """Its name in the files of the slots.

        Money is stored in whole nano-dollars, because only integers add up exactly. A reader that
        does not know that must not take them for dollars.
        """
        return self.name.replace(_DOLLARS, _STORED) if self.kind == "counter" else self.name

    @cached_property
    def labels(self) -> tuple[str, ...]:
        return tuple(self.label_values)

    def series_bound(self, limits: Mapping[Names, int]) -> int:
        """The most series that the family can have if there are at most so many names."""
        per_child = len(self.buckets) + 3 if self.kind == "histogram" else 1  # +Inf, sum, count
        return per_child * prod(label.size(limits) for label in self.label_values.values())

    def describe(self) -> dict[str, Any]:
        """The family as `nexus metrics list --json` shows it."""
        shown = ("name", "kind", "help", "labels", "buckets", "source")
        return {name: getattr(self, name) for name in shown}


def shown_name(stored: str) -> tuple[str, int]:
    """The name under which a stored counter is shown, and what its value is divided by."""
    if stored.endswith(_STORED):
        return stored.replace(_STORED, _DOLLARS), NANO
    return stored, 1


def counter(name: str, text: str, source: Source = "workers", /, **labels: Label) -> Family:
    return Family(name=name, kind="counter", help=text, source=source, label_values=labels)


def gauge(name: str, text: str, source: Source, /, **labels: Label) -> Family:
    return Family(name=name, kind="gauge", help=text, source=source, label_values=labels)


def histogram(
    name: str,
    text: str,
    buckets: tuple[float, ...],
    source: Source = "workers",
    /,
    **labels: Label,
) -> Family:
    return Family(
        name=name, kind="histogram", help=text, buckets=buckets, source=source, label_values=labels
    )
