"""Prometheus's text format, read back: the samples of a scrape, and what a histogram's buckets tell."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_LINE = re.compile(r"^([A-Za-z_:][\w:]*)(?:\{(.*)\})? (\S+)$")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_ESCAPED = re.compile(r"\\(.)")


@dataclass(frozen=True)
class Sample:
    """One line of a scrape."""

    name: str
    labels: Mapping[str, str]
    value: float


def parse(text: str) -> list[Sample]:
    """The samples in their order; comments and what is no sample are left out."""
    found = []
    for line in text.splitlines():
        if match := _LINE.match(line):
            labels = {
                key: _ESCAPED.sub(_plain, value) for key, value in _LABEL.findall(match[2] or "")
            }
            found.append(Sample(match[1], labels, float(match[3])))
    return found


def _plain(escaped: re.Match[str]) -> str:
    return "\n" if escaped[1] == "n" else escaped[1]


def total(samples: Iterable[Sample], name: str, **labels: str) -> float | None:
    """The sum over the samples of this name and these labels; None where there is none."""
    values = [s.value for s in samples if s.name == name and labels.items() <= s.labels.items()]
    return sum(values) if values else None


def histograms(samples: Sequence[Sample], family: str) -> list[dict[str, Any]]:
    """Count, mean and percentiles of each of a histogram's label sets; the percentiles as Prometheus estimates them."""
    buckets: dict[frozenset[tuple[str, str]], list[tuple[float, float]]] = {}
    sums: dict[frozenset[tuple[str, str]], float] = {}
    for sample in samples:
        labels = frozenset((key, value) for key, value in sample.labels.items() if key != "le")
        if sample.name == f"{family}_bucket":
            buckets.setdefault(labels, []).append((float(sample.labels["le"]), sample.value))
        elif sample.name == f"{family}_sum":
            sums[labels] = sample.value
    found = []
    for labels, counts in buckets.items():
        counts.sort()
        count = counts[-1][1]
        figures = {f"p{share}": quantile(share / 100, counts) for share in (50, 90, 99)}
        mean = sums.get(labels, 0.0) / count if count else None
        found.append({"labels": dict(sorted(labels)), "count": count, "mean": mean, **figures})
    return found


def quantile(share: float, buckets: Sequence[tuple[float, float]]) -> float | None:
    """As PromQL's `histogram_quantile`: linear within the bucket; the last bound for what lies above all of them."""
    if not buckets or not buckets[-1][1]:
        return None
    rank, below, start = share * buckets[-1][1], 0.0, 0.0
    for bound, count in buckets:
        if count >= rank:
            if bound == float("inf"):
                return start
            return start + (bound - start) * (rank - below) / (count - below)
        below, start = count, bound
    return start
