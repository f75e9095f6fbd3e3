"""Reads a scrape: its samples, and what a histogram's buckets show."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prometheus_client.samples import Sample

_EXHAUSTED = 0.05


def parse(text: str) -> list[Sample]:
    """The samples of a scrape, in their order."""
    # Importing the library takes longer than most commands run.
    from prometheus_client.parser import text_string_to_metric_families

    return [sample for family in text_string_to_metric_families(text) for sample in family.samples]


def total(samples: Iterable[Sample], name: str, **labels: str) -> float | None:
    """The sum of the samples with this name and these labels; None without any."""
    values = [s.value for s in samples if s.name == name and labels.items() <= s.labels.items()]
    return sum(values) if values else None


def exhausted_limits(samples: Iterable[Sample]) -> list[dict[str, Any]]:
    """The limits of which less than a twentieth is left."""
    return [
        {**sample.labels, "left": sample.value}
        for sample in samples
        if sample.name == "nexus_limit_level" and sample.value < _EXHAUSTED
    ]


def limit_text(limit: dict[str, Any]) -> str:
    """A limit of `exhausted_limits` in words."""
    who = f" of {limit['subject']}" if limit["subject"] else ""
    return (
        f"{limit['limit']}{who} on {limit['dimension'].replace('_', ' ')}: {limit['left']:.0%} left"
    )


def histograms(samples: Sequence[Sample], family: str) -> list[dict[str, Any]]:
    """Count, mean and percentiles of a histogram, for each set of labels."""
    buckets: dict[frozenset[tuple[str, str]], list[tuple[float, float]]] = {}
    sums: dict[frozenset[tuple[str, str]], float] = {}
    for sample in samples:
        labels = frozenset((key, value) for key, value in sample.labels.items() if key != "le")
        if sample.name == f"{family}_bucket":
            buckets.setdefault(labels, []).append((float(sample.labels["le"]), sample.value))
        elif sample.name == f"{family}_sum":
            sums[labels] = sample.value
    rows = []
    for labels, counts in buckets.items():
        counts.sort()
        count = counts[-1][1]
        percentiles = {f"p{share}": quantile(share / 100, counts) for share in (50, 90, 99)}
        mean = sums.get(labels, 0.0) / count if count else None
        rows.append({"labels": dict(sorted(labels)), "count": count, "mean": mean, **percentiles})
    return rows


def quantile(share: float, buckets: Sequence[tuple[float, float]]) -> float | None:
    """As PromQL's `histogram_quantile`: linear within a bucket."""
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
