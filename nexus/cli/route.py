"""`nexus route`: what the router would do."""

from __future__ import annotations

from typing import Any

import click

from nexus.cli.gateway import config_option
from nexus.cli.output import Result, returns_result


@click.group("route")
def route() -> None:
    """What the router would do."""


@route.command("explain", short_help="Show which backends would be tried, and why.")
@click.argument("model")
@config_option
@click.option(
    "--body",
    metavar="FILE",
    help="A request body that shows the needs of the request; - reads standard input.",
)
@click.option(
    "--session",
    metavar="ID",
    help="The session's id, as with the header X-Nexus-Affinity; by default as the body says.",
)
@click.option("--key", default="", metavar="ID", help="The caller's key: its sessions are its own.")
@click.option(
    "--endpoint",
    metavar="NAME",
    help="The endpoint that the request goes to; by default the first that the body fits.",
)
@click.option("--flexible", is_flag=True, help="As with the header X-Nexus-Flexible.")
@returns_result
def explain(model: str, config: str | None, **options: Any) -> Result:
    """Show every backend with its score or why it is out, and in which order they would be tried.

    It exits with 1 if nothing can serve.
    """
    from nexus.cli.explanation import route_explain

    return route_explain(config, model, **options)
