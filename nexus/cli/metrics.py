"""`nexus metrics …`: the table of families, and how many series there can be."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from nexus.config import Config
from nexus.metrics.bound import bound
from nexus.metrics.families import FAMILIES


def show_list(*, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps([asdict(family) for family in FAMILIES], indent=2))
        return
    width = max(len(family.name) for family in FAMILIES)
    for family in FAMILIES:
        labels = f" {{{', '.join(family.labels)}}}" if family.labels else ""
        click.echo(f"{family.name:<{width}}  {family.kind:<9}  {family.help}{labels}")


def show_bound(config: Config, *, as_json: bool) -> None:
    series = bound(config)
    total = sum(series.values())
    if as_json:
        click.echo(json.dumps({"total": total, "families": series}, indent=2))
        return
    width = max(map(len, series))
    for name, count in sorted(series.items(), key=lambda item: -item[1]):
        click.echo(f"{name:<{width}}  {count:>12,}")
    click.echo(f"{'at most, in all':<{width}}  {total:>12,}")
