"""`nexus metrics`: the metric families, the bound on their series, and their values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from nexus.cli.gateway import Gateway, config_option, gateway_options
from nexus.cli.output import Exit, Failure, Result, format_number, returns_result, table
from nexus.runtime.text import suggest

if TYPE_CHECKING:
    from prometheus_client.samples import Sample

    from nexus.metrics.family import Family


@click.group("metrics", short_help="Metric families, how many series, their values.")
def metrics() -> None:
    """The metric families, how many series they can have, and their values now."""


@metrics.command("list")
@returns_result
def list_() -> Result:
    """List every family with its type, meaning and labels."""
    from nexus.metrics.families import FAMILIES

    rows = [
        (
            family.name,
            family.kind,
            family.help + (f" {{{', '.join(family.labels)}}}" if family.labels else ""),
        )
        for family in FAMILIES
    ]
    return Result(
        [family.describe() for family in FAMILIES], table(("FAMILY", "TYPE", "MEANING"), rows)
    )


@metrics.command("bound")
@config_option
@returns_result
def bound(config: str | None) -> Result:
    """Show how many series the configuration can have at most."""
    from nexus.config import load
    from nexus.metrics.series_bound import series_bound
    from nexus.proxy.endpoints import ENDPOINTS

    loaded = load(config).config
    count = len(ENDPOINTS.names) + len(loaded.endpoints.custom)
    series = series_bound(loaded, endpoints=count)
    total = sum(series.values())
    rows = [
        (name, f"{count:,}") for name, count in sorted(series.items(), key=lambda item: -item[1])
    ]
    text = table(("FAMILY", "AT MOST"), [*rows, ("in all", f"{total:,}")], right=("AT MOST",))
    return Result({"total": total, "families": series}, text)


@metrics.command("get")
@click.argument("family")
@click.argument("labels", nargs=-1, metavar="[LABEL=VALUE]...")
@gateway_options
@returns_result
def get(family: str, labels: tuple[str, ...], gateway: Gateway) -> Result:
    """Show a family's samples now, added up over all processes.

    LABEL=VALUE shows only samples with this label; * in the value stands for anything. The prefix
    `nexus_` is optional. A histogram is shown by its count, mean and percentiles, which are
    estimated from its buckets; --json has the buckets.

    \b
    nexus metrics get requests_total status='5*'
    nexus metrics get request_duration_seconds backend=rack_1

    It exits with 1 if there is no such sample.
    """
    from nexus.cli.samples import parse

    known = _family(family)
    wanted = _filters(known, labels)
    names = {known.name} | {
        f"{known.name}_{part}" for part in ("bucket", "sum", "count") if known.kind == "histogram"
    }
    scrape = parse(gateway.get("/metrics").content.decode())
    samples = sorted(
        (sample for sample in scrape if sample.name in names and _matches(sample, wanted)),
        key=_by_labels,
    )
    shown = [{"name": s.name, "labels": dict(s.labels), "value": _number(s.value)} for s in samples]
    data = {"family": known.name, "type": known.kind, "samples": shown}
    if samples:
        return Result(data, lambda: _table(known, samples))
    message = f"{known.name} has no such sample yet."
    return Result(data, failure=Failure(message, status=Exit.NEGATIVE))


def _by_labels(sample: Sample) -> list[str]:
    """The sort key that keeps a histogram's parts together and its buckets in order."""
    return [value for label, value in sorted(sample.labels.items()) if label != "le"]


def _family(name: str) -> Family:
    from nexus.metrics.families import FAMILIES

    known = {family.name: family for family in FAMILIES}
    for candidate in (name, f"nexus_{name}", f"nexus_{name}_total"):
        if candidate in known:
            return known[candidate]
    hint = suggest(f"nexus_{name.removeprefix('nexus_')}", known)
    hint = hint or "`nexus metrics list` shows all."
    raise Failure(f"There is no family {name}; {hint}", status=Exit.USAGE)


def _filters(family: Family, given: Sequence[str]) -> dict[str, str]:
    filters = {}
    for item in given:
        label, is_pair, value = item.partition("=")
        if not is_pair or label not in family.labels:
            has = f"has the labels {', '.join(family.labels)}" if family.labels else "has no labels"
            raise Failure(
                f"{item} is not LABEL=VALUE for {family.name}, which {has}.", status=Exit.USAGE
            )
        filters[label] = value
    return filters


def _matches(sample: Sample, wanted: dict[str, str]) -> bool:
    from fnmatch import fnmatchcase

    return all(
        fnmatchcase(sample.labels.get(label, ""), pattern) for label, pattern in wanted.items()
    )


def _number(value: float) -> Any:
    return value if value - value == 0 else str(value)  # JSON knows no infinity


def _table(family: Family, samples: list[Sample]) -> str:
    heads = [label.upper() for label in family.labels]
    if family.kind != "histogram":
        rows = [
            [*(s.labels.get(label, "") for label in family.labels), format_number(s.value)]
            for s in samples
        ]
        return table([*heads, "VALUE"], rows, right=("VALUE",))
    from nexus.cli.samples import histograms

    columns = ("count", "mean", "p50", "p90", "p99")
    rows = [
        [
            *(row["labels"].get(label, "") for label in family.labels),
            *("-" if row[column] is None else format_number(row[column]) for column in columns),
        ]
        for row in histograms(samples, family.name)
    ]
    return table(
        [*heads, *(column.upper() for column in columns)],
        rows,
        right=[column.upper() for column in columns],
    )
