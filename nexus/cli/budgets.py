"""`nexus budgets`: how the budgets stand, and more money for one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from nexus.cli.gateway import Gateway, admin_addresses, admin_options, find_admin
from nexus.cli.output import Result, json_option, returns_result, table


@click.group(
    "budgets", invoke_without_command=True, short_help="Show how the budgets stand; grant more."
)
@admin_addresses
@json_option
@click.pass_context
def budgets(context: click.Context, /, **options: Any) -> None:
    """Show what each budget of [[budgets]] allows, what is spent, held, and left, in US dollars.

    What was granted for the present window is part of the limit.
    """
    if context.invoked_subcommand is None:
        show(**options)
    context.default_map = {"grant": options}


@returns_result
def show(config: str | None, url: str | None) -> Result:
    found = find_admin(config, url).admin("GET", "budgets")["budgets"]
    return Result({"budgets": found}, _table(found) if found else "There are no [[budgets]].")


@budgets.command("grant")
@click.argument("name")
@click.option(
    "--subject",
    default="",
    help='Whose, as `nexus budgets` shows it, such as "key k7f3q2m9x4ta"; [for all].',
)
@click.option("--usd", metavar="AMOUNT", required=True, help="US dollars, such as 50.")
@admin_options
@returns_result
def grant(name: str, subject: str, usd: str, gateway: Gateway) -> Result:
    """Add to what the budget NAME allows until its present window ends.

    A second grant adds to the first. Grants outlast restarts.
    """
    body = {"budget": name, "subject": subject, "usd": usd}
    granted = gateway.admin("POST", "budgets/grants", body)
    notes = []
    if "user " in granted["subject"] and granted["spent_usd"] == granted["held_usd"] == "0":
        notes = ["Users are not listed, and this one has cost nothing yet: check the name."]
    return Result(granted, _table([granted]), notes=notes)


def _table(found: Sequence[dict[str, Any]]) -> str:
    rows = [
        (
            one["budget"],
            one["subject"],
            one["mode"],
            one["limit_usd"],
            "" if one["granted_usd"] == "0" else one["granted_usd"],
            one["spent_usd"],
            one["held_usd"],
            one["left_usd"],
            one["resets"] or "never",
        )
        for one in found
    ]
    head = ("BUDGET", "SUBJECT", "MODE", "LIMIT", "GRANTED", "SPENT", "HELD", "LEFT", "RESETS")
    return table(head, rows, right=head[3:-1])
