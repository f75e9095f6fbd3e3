"""`nexus metrics`: the table of families, how many series there can be, and what they say now."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from nexus.cli.gateway import config_option, find_gateway, gateway_options
from nexus.cli.output import (
    Exit,
    Failure,
    format_number,
    json_option,
    print_json,
    print_text,
    table,
)

if TYPE_CHECKING:
    from nexus.cli.samples import Sample
    from nexus.metrics.family import Family


@click.group("metrics", short_help="The metrics that there are, their number, their values.")
def metrics() -> None:
    """The metrics that there are, how many series they can have, and what they say now."""


@metrics.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List every family with its type, meaning and labels."""
    from nexus.metrics.families import FAMILIES

    if as_json:
        print_json([family.describe() for family in FAMILIES])
        return
    rows = [
        (
            family.name,
            family.kind,
            family.help + (f" {{{', '.join(family.labels)}}}" if family.labels else ""),
        )
        for family in FAMILIES
    ]
    print_text(table(("FAMILY", "TYPE", "MEANING"), rows))


@metrics.command("bound")
@config_option
@json_option
def bound(config: str | None, as_json: bool) -> None:
    """Say how many series the configuration can have at most."""
    from nexus.config import load
    from nexus.metrics.series_bound import series_bound
    from nexus.proxy.endpoints import ENDPOINTS

    series = series_bound(load(config).config, endpoints=len(ENDPOINTS))
    total = sum(series.values())
    if as_json:
        print_json({"total": total, "families": series})
        return
    rows = [
        (name, f"{count:,}") for name, count in sorted(series.items(), key=lambda item: -item[1])
    ]
    print_text(table(("FAMILY", "AT MOST"), [*rows, ("in all", f"{total:,}")], right=("AT MOST",)))


@metrics.command("get")
@click.argument("family")
@click.argument("labels", nargs=-1, metavar="[LABEL=VALUE]...")
@gateway_options
@json_option
def get(
    family: str, labels: tuple[str, ...], config: str | None, url: str | None, as_json: bool
) -> None:
    """Show a family's samples now, those of all processes added up.

    LABEL=VALUE leaves only those with this label; * in the value stands for anything. `nexus_` may be left out. A
    histogram is shown by its count, mean and percentiles, which are estimated from its buckets; --json has the buckets.

    \b
    nexus metrics get requests_total status='5*'
    nexus metrics get request_duration_seconds backend=rack_1

    It exits with 1 where there is no such sample.
    """
    from nexus.cli.samples import parse

    known = _family(family)
    wanted = _filters(known, labels)
    names = {known.name} | {
        f"{known.name}_{part}" for part in ("bucket", "sum", "count") if known.kind == "histogram"
    }
    scrape = parse(find_gateway(config, url).get("/metrics").content.decode())
    samples = sorted(
        (sample for sample in scrape if sample.name in names and _matches(sample, wanted)),
        key=_by_labels,
    )
    if as_json:
        shown = [
            {"name": s.name, "labels": dict(s.labels), "value": _number(s.value)} for s in samples
        ]
        print_text(
            json.dumps({"family": known.name, "type": known.kind, "samples": shown}, indent=2)
        )
    elif samples:
        print_text(_shown(known, samples))
    if not samples:
        raise Failure(f"{known.name} has no such sample yet.", status=Exit.NEGATIVE)


def _by_labels(sample: Sample) -> list[str]:
    """A histogram's parts stay together, and its buckets in their order."""
    return [value for label, value in sorted(sample.labels.items()) if label != "le"]


def _family(name: str) -> Family:
    from nexus.metrics.families import FAMILIES

    known = {family.name: family for family in FAMILIES}
    for candidate in (name, f"nexus_{name}", f"nexus_{name}_total"):
        if candidate in known:
            return known[candidate]
    import difflib

    close = difflib.get_close_matches(f"nexus_{name.removeprefix('nexus_')}", known, n=1)
    hint = f"did you mean {close[0]}?" if close else "`nexus metrics list` shows all."
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


def _shown(family: Family, samples: list[Sample]) -> str:
    heads = [label.upper() for label in family.labels]
    if family.kind != "histogram":
        rows = [
            [*(s.labels.get(label, "") for label in family.labels), format_number(s.value)]
            for s in samples
        ]
        return table([*heads, "VALUE"], rows, right=("VALUE",))
    from nexus.cli.samples import histograms

    figures = ("count", "mean", "p50", "p90", "p99")
    rows = [
        [
            *(found["labels"].get(label, "") for label in family.labels),
            *("-" if found[figure] is None else format_number(found[figure]) for figure in figures),
        ]
        for found in histograms(samples, family.name)
    ]
    return table(
        [*heads, *(figure.upper() for figure in figures)],
        rows,
        right=[figure.upper() for figure in figures],
    )
