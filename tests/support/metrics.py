"""Metrics as a scrape shows them."""

import urllib.request
from collections.abc import Iterable
from functools import cache

from prometheus_client.parser import text_string_to_metric_families

Sample = tuple[str, frozenset[tuple[str, str]]]


@cache
def _sample(series: str) -> Sample:
    """A series by the library's own parser, which would take most of the time of a scrape."""
    [family] = text_string_to_metric_families(f"{series} 0\n")
    [sample] = family.samples
    return sample.name, frozenset(sample.labels.items())


class Scrape:
    """One scrape, as a mapping from sample to value."""

    def __init__(self, text: str) -> None:
        self.text = text
        lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
        self.samples = {_sample(series): float(value) for series, _, value in lines}

    def value(self, name: str, **labels: str) -> float:
        """A sample's value; 0 where there is none."""
        return self.samples.get((name, frozenset(labels.items())), 0.0)

    def total(self, name: str, **labels: str) -> float:
        """The sum over all samples of the name that have these labels."""
        wanted = set(labels.items())
        return sum(
            value for (key, found), value in self.samples.items() if key == name and wanted <= found
        )

    def series(self, name: str, *by: str) -> dict[tuple[str, ...], float]:
        """Sums by label values, without those that are 0."""
        sums: dict[tuple[str, ...], float] = {}
        for (key, found), value in self.samples.items():
            if key == name and value:
                labels = dict(found)
                at = tuple(labels[label] for label in by)
                sums[at] = sums.get(at, 0.0) + value
        return sums

    def has(self, name: str) -> bool:
        return any(key == name for key, _ in self.samples)


def scrape(base: str) -> Scrape:
    with urllib.request.urlopen(f"{base}/metrics", timeout=10) as answer:
        assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        return Scrape(answer.read().decode())


def moved(before: Scrape, after: Scrape, names: Iterable[str]) -> dict[Sample, float]:
    """What changed between two scrapes, over the samples of these names."""
    wanted = set(names)
    keys = {key for key in (*before.samples, *after.samples) if key[0] in wanted}
    changes = {key: after.samples.get(key, 0.0) - before.samples.get(key, 0.0) for key in keys}
    return {key: change for key, change in changes.items() if change}
