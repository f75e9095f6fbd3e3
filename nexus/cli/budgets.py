"""`nexus budgets`: how the budgets stand."""

from __future__ import annotations

import click

from nexus.cli.gateway import admin_options, find_admin
from nexus.cli.output import Result, returns_result, table


@click.command("budgets", short_help="Show how the budgets stand.")
@admin_options
@returns_result
def budgets(config: str | None, url: str | None) -> Result:
    """Show what each budget of [[budgets]] allows, what is spent, held, and left, in US dollars."""
    found = find_admin(config, url).admin("GET", "budgets")["budgets"]
    rows = [
        (
            one["budget"],
            one["subject"],
            one["mode"],
            one["limit_usd"],
            one["spent_usd"],
            one["held_usd"],
            one["left_usd"],
            one["resets"] or "never",
        )
        for one in found
    ]
    head = ("BUDGET", "SUBJECT", "MODE", "LIMIT", "SPENT", "HELD", "LEFT", "RESETS")
    text = table(head, rows, right=("LIMIT", "SPENT", "HELD", "LEFT"))
    return Result({"budgets": found}, text if found else "There are no [[budgets]].")
