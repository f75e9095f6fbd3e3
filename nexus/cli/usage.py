"""`nexus usage`: what was used and what it cost."""

from __future__ import annotations

import re
from urllib.parse import urlencode

import click

from nexus.cli.gateway import Gateway, admin_options
from nexus.cli.output import Result, returns_result, table

_MONTH = re.compile(r"(\d{4})-(0[1-9]|1[0-2])")


@click.command("usage", short_help="Report what was used and what it cost.")
@click.option(
    "--by",
    default="team,model",
    metavar="NAMES",
    help="Any of hour, key, team, model, backend, endpoint, with commas [team,model].",
)
@click.option("--month", metavar="MONTH", help="Only this month of UTC, such as 2026-11.")
@click.option("--from", "since", metavar="DAY", help="From this day on, such as 2026-11-27.")
@click.option("--to", "until", metavar="DAY", help="Up to this day, which does not belong to it.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")
@admin_options
@returns_result
def usage(
    by: str,
    month: str | None,
    since: str | None,
    until: str | None,
    as_csv: bool,
    gateway: Gateway,
) -> Result:
    """Report requests, tokens, and costs of all time or of a span, restarts included.

    Requests count in the hour in which they ended. Those of a gateway without prices and budgets
    are not recorded.
    """
    from nexus.admin.usage import as_csv as csv_of

    if month is not None:
        if since or until:
            raise click.UsageError("--month states the whole span; leave out --from and --to.")
        since, until = _span(month)
    span = {"by": by, "from": since, "to": until}
    query = urlencode({name: value for name, value in span.items() if value})
    report = gateway.admin("GET", f"usage?{query}")
    names, rows = report["by"], report["rows"]
    if as_csv:
        return Result(report, lambda: csv_of(names, rows).rstrip("\n"))
    heads = ("REQUESTS", "INPUT", "CACHED", "OUTPUT", "USD")
    cells = [tuple(map(str, row.values())) for row in rows]
    shown = table((*(name.upper() for name in names), *heads), cells, right=heads)
    return Result(report, shown if rows else "Nothing was recorded.")


def _span(month: str) -> tuple[str, str]:
    """The first day of a month, and that of the next one."""
    if (match := _MONTH.fullmatch(month)) is None:
        raise click.BadParameter(f"{month!r} is no month; write it like 2026-11.")
    year, number = int(match[1]), int(match[2])
    following = f"{year + number // 12:04d}-{number % 12 + 1:02d}-01"
    return f"{month}-01", following
